"""Every environment variable set for Ray, TensorFlow, Keras, MLflow and HAProxy, in one table (any process).

Every other module takes its variables from here; `tests/unit/runtime/test_environment.py` fails where one
does not, and the reference page of the documentation is generated from `GROUPS`. Only the standard library
is imported, since the variables must stand before the packages that read them are.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

SERVE_DRAIN_S = 1
"""Seconds in which a proxy notices that a replica is about to end. Ray's 30 s are for cloud balancers."""

_PROCESS = "stays until the process ends; a later command in the same process sets it again"
_CHILD = "the child's environment only; this process never has it"


@dataclass(frozen=True)
class Variable:
    """One variable of a group.

    Attributes:
        name: Its name.
        value: Its value, or, in angle brackets, how it is computed.
        why: What for, and what would be without it.
        default: A value that the user has set is kept; otherwise it is overridden.
    """

    name: str
    value: str
    why: str
    default: bool = False

    @property
    def computed(self) -> bool:
        """Whether the value is known only at run time."""
        return self.value.startswith("<")


@dataclass(frozen=True)
class Group:
    """Variables that are set together. Final.

    Attributes:
        process: Which process reads them, and when they are set.
        put_back: Where the environment is as before.
        variables: The variables.
    """

    process: str
    put_back: str
    variables: tuple[Variable, ...]

    def values(self, computed: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return names and values, for a child process or for Ray's `env_vars`.

        Args:
            computed: The values that the table does not know; exactly those.
        """
        given = dict(computed or {})
        fixed = {variable.name: variable.value for variable in self.variables if not variable.computed}
        missing = {variable.name for variable in self.variables if variable.computed} ^ given.keys()
        assert not missing, f"missing in the call or in the table of variables: {sorted(missing)}"
        return fixed | given

    def apply(self, computed: Mapping[str, str] | None = None) -> None:
        """Set them in this process; a default gives way to what the user has set.

        A value that this function set before is not the user's: a second command in one process (a notebook)
        gets its own.
        """
        values = self.values(computed)
        for variable in self.variables:
            users = variable.name in os.environ and os.environ[variable.name] != _APPLIED.get(variable.name)
            if not (variable.default and users):
                os.environ[variable.name] = _APPLIED[variable.name] = values[variable.name]


_APPLIED: dict[str, str] = {}
"""What `Group.apply` has set in this process."""


def override(values: Mapping[str, str]) -> None:
    """Set variables of the table in this process, whatever they were."""
    unknown = values.keys() - NAMES
    assert not unknown, f"not in the table of variables: {sorted(unknown)}"
    os.environ.update(values)


@contextlib.contextmanager
def unchanged(name: str) -> Iterator[None]:
    """Put a variable back that a package sets within the body, as MLflow does with its own address."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        else:
            os.environ.pop(name, None)


@contextlib.contextmanager
def inherited(values: Mapping[str, str]) -> Iterator[None]:
    """Let processes that start within the body have these variables, and this one not after it."""
    before = {name: os.environ.get(name) for name in values}
    override(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


LOOPBACK = Group(
    "driver, where a proxy is set, at the start of a command",
    _PROCESS,
    (
        Variable("no_proxy", "<the user's, and localhost>", "this machine's own endpoints need no proxy"),
        Variable("NO_PROXY", "<the same>", "the same, for programs that read this spelling"),
    ),
)
RAY = Group(
    "driver, before `import ray`; Ray's processes inherit it",
    _PROCESS,
    (
        Variable("RAY_USAGE_STATS_ENABLED", "0", "Ray's usage report is a request to an outside host", True),
        Variable(
            "RAY_prestart_worker_first_driver",
            "0",
            "prestarted workers lack the workers' environment and are never used: 5 CPU-seconds",
            True,
        ),
    ),
)
LOCAL_RAY = Group(
    "driver that starts a local Ray, before `import ray`; Ray's processes inherit it",
    _PROCESS,
    (
        Variable(
            "RAY_worker_niceness", "0", "with Ray's 15, every other program comes before training", True
        ),
        Variable(
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
            "0",
            "Ray listens on loopback, as on macOS; its dozen ports would be open on every interface, three "
            "of them with metrics for which no token is asked",
            True,
        ),
    ),
)
TOKEN = Group(
    "driver that starts a local Ray; Ray's processes inherit it",
    _PROCESS,
    (
        Variable(
            "RAY_AUTH_TOKEN_PATH",
            "<the user's, else ~/.ray/auth_token>",
            "the token's file, readable by its owner alone; Ray's own would have the umask's mode",
        ),
    ),
)
SESSION = Group(
    "Ray's local processes",
    "right after `ray.init`, by `environment.inherited`",
    (
        Variable("TMPDIR", "<a new folder>", "what killed processes leave there is removed with it"),
        Variable(
            "RAY_TMPDIR",
            "<where Ray would have its sessions>",
            "otherwise below the new TMPDIR, where sockets' paths may get too long",
        ),
    ),
)
TRAIN = Group(
    "driver, before `trainer.fit`; Ray Train's controller",
    _PROCESS,
    (
        Variable(
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5", "a lost worker is noticed within half a second", True
        ),
        Variable(
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",
            "<train.stall_timeout_s>",
            "a worker that hangs is restarted after the configured time",
            True,
        ),
        Variable(
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
            "300",
            "with Ray's 60 s, workers on a busy machine time out importing TensorFlow",
            True,
        ),
        Variable(
            "RAY_TRAIN_COLLECTIVE_TIMEOUT_S",
            "<3 times train.stall_timeout_s>",
            "a rank that hangs in a report or barrier of Ray Train ends the wait of the others",
            True,
        ),
    ),
)
LOCAL_TRAIN = Group(
    "driver that started a local Ray, before `trainer.fit`; Ray Train's controller",
    _PROCESS,
    (
        Variable(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
            "0",
            "a local machine is not preempted; the watcher costs an actor of 5 to 7 CPU-seconds",
            True,
        ),
    ),
)
_KERAS = (
    Variable("TF_USE_LEGACY_KERAS", "0", "Keras 3; Ray Train's own backend would set 1"),
    Variable("KERAS_BACKEND", "tensorflow", "Keras's own file may name another backend"),
)
WORKER = Group(
    "worker, by the group's runtime environment",
    "ends with the worker",
    (
        *_KERAS,
        Variable("TF_CPP_MIN_LOG_LEVEL", "2", "warnings about the processor's features fill the log"),
        Variable(
            "GRPC_FAIL_FAST",
            "use_caller",
            "a collective fails when a peer is lost instead of waiting for it; Ray restarts the group",
        ),
    ),
)
KERAS = Group(
    "worker, before `import tensorflow`",
    "ends with the worker",
    tuple(replace(variable, default=True) for variable in _KERAS),
)
CPU_WORKER = Group(
    "worker without a GPU, before `import tensorflow`",
    "ends with the worker",
    (Variable("CUDA_VISIBLE_DEVICES", "-1", "TensorFlow would take memory of every GPU it sees"),),
)
RANK = Group(
    "worker, before the strategy is made",
    "ends with the worker",
    (
        Variable(
            "TF_CONFIG",
            "<addresses of all ranks, and this rank's index>",
            "how MultiWorkerMirroredStrategy finds its peers",
        ),
        Variable(
            "no_grpc_proxy",
            "<the user's, and the hosts of all ranks>",
            "gRPC sends collectives to http_proxy unless no_proxy names the peers",
        ),
    ),
)
PREDICTOR = Group(
    "driver, replica or batch process, before `import keras`",
    _PROCESS,
    (
        Variable("KERAS_BACKEND", "tensorflow", "exports are TensorFlow's, whatever the user's Keras uses"),
        Variable("TF_CPP_MIN_LOG_LEVEL", "3", "only TensorFlow's fatal messages", True),
        Variable(
            "TF_FORCE_GPU_ALLOW_GROWTH", "true", "several replicas share a GPU's memory as they need it", True
        ),
    ),
)
PREFLIGHT = Group(
    "the process that tries a network of the user's",
    _CHILD,
    (
        *_KERAS,
        Variable("CUDA_VISIBLE_DEVICES", "-1", "two images need no GPU, and the workers need all of it"),
        Variable("TF_CPP_MIN_LOG_LEVEL", "3", "the last line on standard error is the cause"),
    ),
)
PUBLISHED = Group(
    "the process that lets Keras download weights",
    _CHILD,
    (
        Variable("KERAS_HOME", "<a temporary folder>", "the file is moved into the storage, not kept twice"),
        Variable("KERAS_BACKEND", "tensorflow", "the only backend that is installed"),
        Variable("CUDA_VISIBLE_DEVICES", "-1", "a download needs no GPU"),
        Variable("TF_CPP_MIN_LOG_LEVEL", "3", "the last line on standard error is the cause"),
    ),
)
APT = Group(
    "`apt-get` and `dpkg-deb`",
    _CHILD,
    (Variable("LC_ALL", "C", "messages that are shown are in English"),),
)
SEARCH = Group(
    "driver of a search, before `import ray.tune`",
    _PROCESS,
    (
        Variable("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1", "Tune's loggers write three files a trial", True),
        Variable("RAY_AIR_NEW_OUTPUT", "0", "Tune's new output cannot be silenced", True),
        Variable(
            "TUNE_DISABLE_SIGINT_HANDLER",
            "1",
            "Tune's would end the search as if it were finished",
            True,
        ),
        Variable(
            "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S",
            "0",
            "a warning about short trials without consequences",
            True,
        ),
    ),
)
TRACKING = Group(
    "driver, before `import mlflow`",
    _PROCESS,
    (
        Variable(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
            "2",
            "with MLflow's 7, a call to an unreachable server hangs for minutes",
            True,
        ),
        Variable("MLFLOW_HTTP_REQUEST_TIMEOUT", "5", "MLflow's 120 s, for the same reason", True),
        Variable("MLFLOW_DISABLE_TELEMETRY", "true", "telemetry is a request to an outside host", True),
        Variable("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false", "progress bars in the log", True),
        Variable(
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT",
            "true",
            "two lines for each run, under the server's own name, on standard output",
            True,
        ),
        Variable("GIT_PYTHON_REFRESH", "quiet", "a warning where git is not installed", True),
    ),
)
SERVE = Group(
    "driver before a local Ray starts; Ray Serve's controller, proxies and replicas",
    _PROCESS,
    (
        Variable(
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD",
            "0",
            "one event loop in a replica instead of two: no thread is crossed between socket and our code",
        ),
        Variable("RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE", "1000", "one write for many lines of the log"),
        Variable("RAY_SERVE_LOG_TO_STDERR", "0", "Serve's lines go to its log files alone"),
        Variable(
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
            str(SERVE_DRAIN_S),
            "Ray's 30 s are for cloud load balancers",
        ),
        Variable(
            "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S",
            str(SERVE_DRAIN_S),
            "Ray's 30 s are for cloud load balancers",
        ),
        Variable(
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S",
            "60",
            "after Ray's 5 s, too few for a busy machine, a proxy that starts would be killed",
        ),
        Variable(
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS",
            "1",
            "a hung replica does not shut down gracefully and would keep the CPU that its replacement needs",
        ),
        Variable(
            "RAY_max_direct_call_object_size",
            "1048576",
            "what a replica sends to the controller on a new head is 120 kB: beyond Ray's 100 KiB it takes "
            "the object store, which learns of that head so late that Serve replaces the replicas",
        ),
    ),
)
HAPROXY = Group(
    "the same, where HAProxy is the ingress",
    _PROCESS,
    (
        Variable("RAY_SERVE_ENABLE_HA_PROXY", "1", "4 to 5 times the requests per second of Ray's proxy"),
        Variable(
            "RAY_SERVE_HAPROXY_BINARY_PATH",
            "<serving/haproxy.py>",
            "corrects the configuration that Ray writes, then becomes HAProxy",
        ),
        Variable("DISTML_HAPROXY", "<path of HAProxy>", "for serving/haproxy.py"),
        Variable("DISTML_HAPROXY_HOST", "<serve.host>", "for serving/haproxy.py: the address to bind"),
        Variable(
            "DISTML_HAPROXY_REPLICAS",
            "<127.0.0.1 on a local Ray, else serve.host>",
            "for serving/haproxy.py and replica.py: where replicas and HAProxy's statistics listen",
        ),
        Variable(
            "DISTML_HAPROXY_PATIENCE_S",
            "<serve.read_timeout_s>",
            "for serving/haproxy.py: seconds in which a request must arrive",
        ),
        Variable(
            "DISTML_HAPROXY_CERTIFICATE",
            "<serve.tls.certificate, or nothing>",
            "for serving/haproxy.py: the requests' port speaks TLS",
        ),
        Variable(
            "DISTML_HAPROXY_KEY", "<serve.tls.key, or nothing>", "for serving/haproxy.py: its key's file"
        ),
        Variable(
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE",
            "65536",
            "a request is repeated on another replica only while all of it is in one buffer",
        ),
        Variable(
            "RAY_SERVE_HAPROXY_RETRY_ON",
            "conn-failure empty-response response-timeout",
            "predictions are idempotent: a request whose replica was killed is retried on another",
        ),
        Variable("RAY_SERVE_HAPROXY_NBTHREAD", "<cores, at most 4>", "the rest is for replicas"),
        Variable(
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S",
            "<serve.drain_timeout_s + 1>",
            "an old HAProxy ends when its replicas have",
        ),
        Variable(
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S",
            "<serve.request_timeout_s + serve.read_timeout_s + 5>",
            "later than the replica's own limit, whose answer says why",
        ),
        Variable(
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S",
            "<the same>",
            "a client that sends half of a body and stays would hold its connection for an hour",
        ),
        Variable("RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER", "1s", "a replica that hangs is bypassed soon"),
        Variable(
            "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL",
            "1",
            "one check of at most 2.5 s, which a thread of its own answers: serving/replica.py",
        ),
        Variable(
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT",
            "30000",
            "Ray's own value, stated: serving/replica.py looks for a replica's port from here",
        ),
        Variable(
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT",
            "31000",
            "Ray's own value, stated: up to here; the ports of health are 1001 above",
        ),
        Variable(
            "RAY_SERVE_HAPROXY_METRICS_ENABLED",
            "0",
            "a line per request to a Python process costs as much as the prediction",
        ),
    ),
)
_APART = "two endpoints of one machine need their own"
LOCAL_HAPROXY = Group(
    "the same, on a local Ray",
    f"{_PROCESS}; the folder is removed at its exit",
    (
        Variable(
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
            "distml.runtime.compat.grpc_on_loopback",
            "Ray Serve's gRPC servers listen on every interface; clients come by HAProxy",
        ),
        Variable("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "<in a new folder>", _APART),
        Variable("RAY_SERVE_HAPROXY_SOCKET_PATH", "<in a new folder>", _APART),
        Variable("RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH", "<in a new folder>", _APART),
        Variable("RAY_SERVE_HAPROXY_SERVER_STATE_BASE", "<a new folder>", _APART),
        Variable("RAY_SERVE_HAPROXY_SERVER_STATE_FILE", "<in a new folder>", _APART),
        Variable("RAY_SERVE_HAPROXY_STATS_PORT", "<a free port>", _APART),
        Variable("RAY_SERVE_HAPROXY_METRICS_PORT", "<a free port>", _APART),
        Variable("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "<a free port>", _APART),
        Variable("RAY_SERVE_FALLBACK_PROXY_GRPC_PORT", "<a free port>", _APART),
    ),
)
K3D = Group(
    "`k3d cluster create`",
    _CHILD,
    (
        Variable(
            "DISTML_FOLDER", "<the shared folder>", "kuberay/overlays/k3d/k3d.yaml mounts it on every node"
        ),
    ),
)


@dataclass(frozen=True)
class UserSetting:
    """Variables and files of the user's that packages below distml read. Final.

    Attributes:
        names: Variables; `AWS_*` stands for all that begin so, a name with `~` is a file.
        reader: Who reads them.
        effect: Whether what the user set holds.
        why: What is done instead, or where it holds.
    """

    names: tuple[str, ...]
    reader: str
    effect: Literal["used", "replaced", "not used"]
    why: str

    def present(self, environ: Mapping[str, str]) -> list[str]:
        """Return those that are set and not empty, and files that exist."""
        variables = [
            name
            for name in sorted(environ)
            if environ[name] and any(fnmatch.fnmatchcase(name, known) for known in self.names)
        ]
        return variables + [name for name in self.names if name[0] == "~" and os.path.exists(_at(name))]


def _at(name: str) -> str:
    return os.path.expanduser(name)


KERAS_FILE = "~/.keras/keras.json"
NO_DASHBOARD = "DISTML_NO_DASHBOARD"
USER_SETTINGS = (
    UserSetting(
        ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy"),
        "requests, urllib, curl in Arrow, gRPC",
        "used",
        "for other hosts; workers and this machine are reached directly",
    ),
    UserSetting(("no_proxy", "NO_PROXY", "no_grpc_proxy"), "the same", "used", "what we need is added"),
    UserSetting(("~/.netrc",), "requests", "used", "names and passwords, for the tracking server too"),
    UserSetting(
        ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"), "requests, urllib, curl", "used", ""
    ),
    UserSetting(("MLFLOW_TRACKING_URI",), "MLflow", "used", "where tracking.uri is not set"),
    UserSetting(("MLFLOW_TRACKING_*",), "MLflow", "used", "credentials of the tracking server"),
    UserSetting(
        ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
        "MLflow",
        "not used",
        "set tracking.experiment instead",
    ),
    UserSetting(("MLFLOW_RUN_ID", "MLFLOW_RUN_NAME"), "MLflow", "not used", "set run.name instead"),
    UserSetting(("MLFLOW_REGISTRY_URI",), "MLflow", "not used", "the registry is the tracking server's"),
    UserSetting(
        ("MLFLOW_S3_ENDPOINT_URL",), "MLflow", "used", "for artifacts alone; Arrow reads AWS_ENDPOINT_URL"
    ),
    UserSetting(("RAY_ADDRESS",), "Ray", "used", "the cluster that everything runs on"),
    UserSetting(("RAY_NAMESPACE",), "Ray", "not used", "the namespace is distml"),
    UserSetting(
        (NO_DASHBOARD,),
        "distml",
        "used",
        "1: a Ray that distml starts itself has no dashboard (10 processes)",
    ),
    UserSetting(("RAY_*", "TMPDIR"), "Ray", "used", "except where the table above overrides it"),
    UserSetting(("TF_CONFIG",), "TensorFlow", "replaced", "workers get the addresses of their own group"),
    UserSetting(
        ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS", "GRPC_FAIL_FAST"),
        "Keras, TensorFlow",
        "replaced",
        "in workers and wherever a model is loaded",
    ),
    UserSetting(
        (KERAS_FILE,), "Keras", "replaced", "images are channels last, numbers float32, epsilon 1e-7"
    ),
    UserSetting(("KERAS_HOME",), "Keras", "used", "where downloaded weights are kept"),
    UserSetting(("CUDA_VISIBLE_DEVICES",), "Ray, TensorFlow", "used", "which GPUs there are"),
    UserSetting(("TF_*", "XLA_FLAGS", "OMP_NUM_THREADS"), "TensorFlow", "used", "at your own risk"),
    UserSetting(
        ("AWS_*", "~/.aws/config", "~/.aws/credentials"),
        "Arrow, MLflow",
        "used",
        "for s3:// and its artifacts",
    ),
    UserSetting(
        (
            *("GOOGLE_APPLICATION_CREDENTIALS", "CLOUD_STORAGE_EMULATOR_ENDPOINT", "GOOGLE_CLOUD_*"),
            "~/.config/gcloud/application_default_credentials.json",
        ),
        "Arrow, MLflow",
        "used",
        "for gs://",
    ),
    UserSetting(("ARROW_*",), "Arrow", "used", ""),
)
"""What the packages below read besides, the first entry that fits a name counting; `doctor` prints it."""


def user_settings(environ: Mapping[str, str]) -> list[tuple[str, UserSetting]]:
    """Return what of `USER_SETTINGS` is set here, each name once, in the table's order."""
    known: dict[str, UserSetting] = {}
    for setting in USER_SETTINGS:
        for name in setting.present(environ):
            known.setdefault(name, setting)
    return list(known.items())


def with_hosts(hosts: Iterable[str], *names: str) -> str:
    """Return the value of the first of some variables that is set, with hosts added that it lacks."""
    value = next((os.environ[name] for name in names if os.environ.get(name)), "")
    listed = [host.strip() for host in value.split(",") if host.strip()]
    return ",".join(dict.fromkeys([*listed, *hosts]))


def proxied() -> bool:
    """Whether this shell sends requests through a proxy."""
    return any(os.environ.get(name) for name in USER_SETTINGS[0].names)


def plain(keras: Any) -> None:
    """Undo what `~/.keras/keras.json` sets: what distml trains and loads does not depend on it."""
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)


GROUPS: Mapping[str, Group] = {
    name: value for name, value in list(vars().items()) if isinstance(value, Group)
}
"""The table: every group by its name."""
NAMES = frozenset(variable.name for group in GROUPS.values() for variable in group.variables)
"""The names of all variables of the table."""
