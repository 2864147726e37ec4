"""Records of runs, here and in MLflow; the model registry, backups, spooling while the server is away.

Everything that is to be recorded becomes a typed operation in an outbox. One thread
sends them in order, so an outage delays the record and never the training. What could not be sent when
the run ends stays in a spool file under the storage root and is sent by the next command that meets the
server, or by `distml sync`. Operations carry their own time stamps and steps, so sending one twice
records it once.
"""

from distml.tracking.outbox import Tracker, find, register, sync
from distml.tracking.server import check, client, require_experiment, uri

__all__ = ["Tracker", "check", "client", "find", "register", "require_experiment", "sync", "uri"]
