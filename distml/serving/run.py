"""The body of `distml serve`: starts the endpoint, prints its changes, stops it; `distml status` (driver)."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import requests
from rich.console import Console
from rich.markup import escape

from distml.config import Config, ServeConfig, TlsConfig
from distml.errors import ConfigError, DistmlError, ServingError
from distml.runtime import cluster, processes
from distml.serving import client, deploy, haproxy, ingress, keys
from distml.serving.deploy import Endpoint
from distml.serving.models import base, hosted
from distml.storage import Storage
from distml.tracking.registry import CHAMPION

_LOOK_S = 2.0

Described = Mapping[str, Any] | None
"""What `/model` answers, None where nothing does."""


def follow(
    console: Console,
    url: str,
    ended: threading.Event,
    bases: Mapping[str, str] | None = None,
    serve: ServeConfig | None = None,
) -> None:
    """Print a line for every change of the endpoint until an event is set.

    Args:
        console: Where.
        url: Of the endpoint.
        ended: The event.
        bases: Of several models, the address of each by its name; lines begin with the name then.
        serve: Names the keys file and the certificate, which are reloaded when they change.
    """
    places = bases or {"": url}
    files = _Files(serve or ServeConfig())

    def say(name: str, line: str) -> None:
        console.print(escape(f"{name}: {line}" if name else line))

    looks = {name: _described(place) for name, place in places.items()}
    before = {name: described for name, (described, _) in looks.items()}
    refusals = {name: refusal for name, (_, refusal) in looks.items()}
    last = dict(before)  # of each model what it answered last, whatever was in between
    for name, described in before.items():
        for line in engine((described or {}).get("engine")):
            say(name, f"engine     {line}")
        for line in changes(described, described):
            say(name, line)
    for line in files.troubles():
        say("", line)
    while not ended.wait(_LOOK_S):
        for line in files.changes():
            say("", line)
        for name, place in places.items():
            now, refusal = _described(place)
            lines = [refusal] * (refusal != refusals[name]) if refusal else changes(before[name], now)
            if now and before[name] is None and last[name]:
                lines += changes(last[name], now)
            refusals[name], last[name] = refusal, now or last[name]
            for line in lines:
                say(name, line)
            before[name] = now


class _Files:
    """The keys file and the certificate: what is wrong with them since the endpoint runs. Final."""

    def __init__(self, serve: ServeConfig) -> None:
        self._looks = {
            "keys file": partial(_of_keys, serve.auth.keys_file),
            "certificate": partial(_of_certificate, serve.tls),
        }
        self._seen = {what: look() for what, look in self._looks.items()}
        self._told = dict(self._seen)

    def troubles(self) -> list[str]:
        """Return what is wrong now."""
        return [trouble for trouble in self._seen.values() if trouble]

    def changes(self) -> list[str]:
        """Say what two looks agree on: a file that is being written is not told."""
        lines = []
        for what, look in self._looks.items():
            trouble = look()
            if trouble == self._seen[what] != self._told[what]:
                lines.append(trouble or f"the {what} is in order again")
                self._told[what] = trouble
            self._seen[what] = trouble
        return lines


def _of_keys(path: str | None) -> str:
    """Say what is wrong with the keys file and what follows, as `security.KeyCheck` decides."""
    if path is None:
        return ""
    follows = "The previous keys stay valid."
    try:
        keys.read(path)
        follows = "Until then every request is rejected."
        keys.require(path)
    except ConfigError as error:
        return f"{error} {follows}"
    return ""


def _of_certificate(tls: TlsConfig) -> str:
    """Say what is wrong with certificate and key; those that can be loaded are, see `serving.haproxy`."""
    try:
        ingress.require_certificate(tls)
    except ConfigError as error:
        try:
            haproxy.bundled(str(tls.certificate), str(tls.key))
        except ValueError:
            return f"{error} The previous certificate stays in use."
        return str(error)
    return ingress.certificate_validity(tls)


def _described(url: str) -> tuple[Described, str]:
    """What `/model` answers, or why it cannot; an empty reason where nothing answers."""
    try:
        response = requests.get(
            f"{url}/model", timeout=5, headers=keys.sent(own=True), verify=client.verify(url)
        )
        described = response.json()
    except (requests.RequestException, ValueError):
        return None, ""
    if not isinstance(described, dict):
        return None, ""
    return (described, "") if response.status_code == 200 else (None, str(described.get("error", "")))


def changes(before: Described, now: Described) -> list[str]:
    """Say what has changed between two looks; of a look and itself, what is amiss."""
    if now is None or before is None:
        return (
            []
            if now is before
            else ["the endpoint responds again" if now else "the endpoint does not respond"]
        )
    start = now is before
    answers = f"version {now['version']} is still served"
    lines = []
    if now["version"] != before["version"]:
        lines.append(f"version {now['version']} of {now['name']} answers now, before it {before['version']}")
    aliases, former = now.get("aliases", {}), before.get("aliases", {})
    for alias in sorted({*aliases, *former} - {next(iter(aliases), CHAMPION)}):
        if aliases.get(alias) != former.get(alias):
            state = f"is version {aliases[alias]} now" if alias in aliases else "is not loaded any more"
            lines.append(f"{alias} {state}")
    lines += _refusals(before, now, answers)
    lines += _losses(before, now)
    was, registry = before["registry"], now["registry"]
    if not registry["answers"] and (start or was["answers"]):
        age = (
            "never answered"
            if registry["age_s"] is None
            else f"has not responded for {registry['age_s']:.0f} s"
        )
        lines.append(f"the registry {age}; {answers}")
    if registry["answers"] and not was["answers"]:
        lines.append("the registry responds again")
    for missing in registry["missing"]:
        if start or missing not in was["missing"]:
            lines.append(f"the registry has no {missing} any more; {answers}")
    lines += [
        f"the registry has {alias} again" for alias in was["missing"] if alias not in registry["missing"]
    ]
    return lines


def _refusals(before: Mapping[str, Any], now: Mapping[str, Any], answers: str) -> list[str]:
    """Say which versions are refused since the last look, all of them at the first, and which no longer."""
    refused = {(entry["version"], entry["alias"]): entry["reason"] for entry in now["refused"]}
    known = (
        {(entry["version"], entry["alias"]) for entry in before["refused"]} if now is not before else set()
    )
    # "refused" is the word of `/model`, the gauge and `distml status`, for those who search a log for it
    lines = [
        f"refused: version {version} ({alias}): {reason} {answers}"
        for (version, alias), reason in refused.items()
        if (version, alias) not in known
    ]
    aliases = now.get("aliases", {})
    return lines + [
        f"version {version} ({alias}) is not refused any more"
        for version, alias in sorted(known - refused.keys())
        if aliases.get(alias) == version
    ]


def _losses(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say of which versions replicas died since the last look, all of them at the first."""
    known = {} if now is before else {(loss["version"], loss["doing"]): loss for loss in before["losses"]}
    lines = []
    for loss in now["losses"]:
        seen = known.get((loss["version"], loss["doing"]), {"replicas": 0})["replicas"]
        if loss["replicas"] > seen:
            times = f", {loss['replicas']} by now" if loss["replicas"] > 1 else ""
            lines.append(f"version {loss['version']}: a replica died while {_DOING[loss['doing']]}{times}")
    return lines


_DOING = {"loading": "loading it", "predicting": "computing its predictions"}


def _lost(loss: Mapping[str, Any]) -> str:
    """Say of which version how many replicas died, since the endpoint's watcher started."""
    count = loss["replicas"]
    return f"version {loss['version']}: {count} replica{'s' * (count > 1)} died while {_DOING[loss['doing']]}"


_QUANTILES = (0.5, 0.99)


def status(config: Config, url: str, own: bool, over_s: float) -> dict[str, Any]:
    """Look at an endpoint, count its requests for a while, and print a screen.

    Args:
        config: Names the storage with the comparisons of drift.
        url: Of the endpoint.
        own: It is this Ray's (`keys.sent`).
        over_s: Seconds in which requests are counted.

    Raises:
        ServingError: Nothing answers there, or it asks for another key.
    """
    entries = client.index(url, own)
    names = list(dict.fromkeys(entry["name"] for entry in entries))
    before = client.scrape(url, own)
    time.sleep(over_s)
    after = client.scrape(url, own)
    common = {
        "drifted": _drifted(Storage(config.storage.root)),
        "certificate_until": _certificate_until(after),
    }
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if len(names) < 2:
        state = {"url": url, **_standing(client.get(f"{url}/model", own)), **measured(before, after, over_s)}
        _print(console, state | common)
        return state | common
    models = {}
    for name in names:
        bad = [entry for entry in entries if entry["name"] == name and entry["state"] != "READY"]
        models[name] = _of_several(f"{url}/models/{name}", own, bad) | measured(before, after, over_s, name)
    state = {"url": url, "models": models, **measured(before, after, over_s), **common}
    _print_several(console, state)
    return state


def _standing(described: Mapping[str, Any]) -> dict[str, Any]:
    """What `/model` says, as far as the status shows it."""
    return {
        "model": described["name"],
        "version": described["version"],
        "aliases": described["aliases"],
        "engine": described.get("engine"),
        "loaded": [version["version"] for version in described["versions"]],
        "refused": described["refused"],
        "losses": described.get("losses", []),
        "missing": described["registry"]["missing"],
        "registry_age_s": described["registry"]["age_s"],
    }


def _of_several(base: str, own: bool, unavailable: list[dict[str, Any]]) -> dict[str, Any]:
    """How one of several models stands; `why`, where none of its versions is served."""
    try:
        return _standing(client.get(f"{base}/model", own))
    except ServingError:
        whole = [entry["reason"] for entry in unavailable]
        reasons = [
            f"version {entry['version']} is rejected: {entry['reason']}"
            for entry in unavailable
            if entry["version"]
        ]
        return {"version": None, "why": " ".join(reasons or whole)}


def measured(
    before: client.Samples, after: client.Samples, seconds: float, model: str | None = None
) -> dict[str, Any]:
    """Derive rates and latencies from two scrapes of the metrics; of one model where there are several."""
    if model is not None:
        before, after = (
            [sample for sample in samples if sample[1].get("model") == model] for samples in (before, after)
        )

    def total(samples: client.Samples, failed: bool) -> float:
        return sum(
            value
            for name, labels, value in samples
            if name == "distml_requests_total" and (not failed or labels["status"][0] == "5")
        )

    def rate(failed: bool) -> float:
        return round(max(0.0, total(after, failed) - total(before, failed)) / seconds, 2)

    replicas = {labels.get("replica", "") for name, labels, _ in after if name == "distml_champion_version"}
    quantiles = {f"p{share * 100:.0f}_s": _quantile(after, share) for share in _QUANTILES}
    return {
        "replicas": len(replicas),
        "requests_per_s": rate(failed=False),
        "failed_per_s": rate(failed=True),
        **quantiles,
    }


def _certificate_until(samples: client.Samples) -> str | None:
    """When the certificate of the endpoint ends, as a date; None without one."""
    name = "distml_certificate_expiry_timestamp_seconds"
    ends = [value for sample, _, value in samples if sample == name and not math.isnan(value)]
    return f"{datetime.fromtimestamp(min(ends), UTC):%Y-%m-%d %H:%M} UTC" if ends else None


def _quantile(samples: client.Samples, share: float) -> float | None:
    """The bound of the bucket that holds a share of the requests for predictions; None without any."""
    buckets: dict[float, float] = {}
    for name, labels, value in samples:
        if name == "distml_request_seconds_bucket" and any(word in labels["route"] for word in _PREDICTING):
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
    most = max(buckets.values(), default=0.0)
    return (
        min((bound for bound, count in buckets.items() if count >= share * most), default=None)
        if most
        else None
    )


_PREDICTING = ("predict", "infer")


def _drifted(storage: Storage) -> bool | None:
    """What the last `distml drift` said, None where there was none."""
    with contextlib.suppress(DistmlError, ValueError, KeyError):
        last = storage.names("drift")[-1:]
        return json.loads(storage.read_text("drift", *last, "drift.json"))["drifted"] if last else None
    return None


def _print(console: Console, state: Mapping[str, Any]) -> None:
    aliases = ", ".join(f"{alias} {version}" for alias, version in state["aliases"].items())
    age = state["registry_age_s"]
    lines = [
        f"{state['model']} at {state['url']}",
        f"aliases   {aliases or 'none'}; loaded {', '.join(map(str, state['loaded']))}",
        *(
            f"refused   version {refusal['version']} ({refusal['alias']}): {refusal['reason']}"
            for refusal in state["refused"]
        ),
        *(f"missing   {missing}" for missing in state["missing"]),
        *(f"lost      {_lost(loss)}" for loss in state["losses"]),
        f"registry  {'never answered' if age is None else f'answered {age:.0f} s ago'}",
        *(f"engine    {line}" for line in engine(state["engine"])),
        f"replicas  {state['replicas']}",
        f"requests  {state['requests_per_s']:g}/s, failed {state['failed_per_s']:g}/s",
        f"latency   p50 {_shown(state['p50_s'])}, p99 {_shown(state['p99_s'])}",
        f"drift     {_DRIFTED[state['drifted']]}",
        *(f"tls       {line}" for line in _certificate(state)),
    ]
    for line in lines:
        console.print(escape(line))


def _print_several(console: Console, state: Mapping[str, Any]) -> None:
    models = state["models"]
    ready = sum(model["version"] is not None for model in models.values())
    lines = [f"{ready} of {len(models)} models answer at {state['url']}"]
    width = max(9, *map(len, models))
    for name, model in models.items():
        lines += [f"{name:<{width}} {line}" for line in _of_model(model)]
    lines += [
        f"{'replicas':<{width}} {state['replicas']}",
        f"{'requests':<{width}} {state['requests_per_s']:g}/s, failed {state['failed_per_s']:g}/s",
        f"{'drift':<{width}} {_DRIFTED[state['drifted']]}",
        *(f"{'tls':<{width}} {line}" for line in _certificate(state)),
    ]
    for line in lines:
        console.print(escape(line))


def _of_model(model: Mapping[str, Any]) -> list[str]:
    """Say in a line how one of several models stands, and in others what is amiss."""
    if model["version"] is None:
        return [f"no version is served: {model['why'] or 'none is loaded'}"]
    aliases = ", ".join(f"{alias} {version}" for alias, version in model["aliases"].items())
    age = model["registry_age_s"]
    silent = f"; the registry answered {age:.0f} s ago" if age is not None and age > _SILENT_S else ""
    rate = f"{model['requests_per_s']:g}/s, failed {model['failed_per_s']:g}/s"
    latency = f"p50 {_shown(model['p50_s'])}, p99 {_shown(model['p99_s'])}"
    return [
        f"{aliases}; loaded {', '.join(map(str, model['loaded']))}; {rate}, {latency}{silent}",
        *(f"rejected version {bad['version']} ({bad['alias']}): {bad['reason']}" for bad in model["refused"]),
        *(f"missing {missing}" for missing in model["missing"]),
        *(f"lost {_lost(loss)}" for loss in model["losses"]),
    ]


def _certificate(state: Mapping[str, Any]) -> list[str]:
    """Say until when the certificate is valid; nothing without one."""
    ends = state["certificate_until"]
    return [f"certificate valid until {ends}"] if ends else []


_SILENT_S = 30.0
_DRIFTED = {None: "not compared yet", True: "drifted", False: "none"}


def engine(described: Described) -> list[str]:
    """Say which engine computes, and what the others took; nothing where the endpoint does not tell."""
    if not described:
        return []
    threads = described["threads"]
    line = f"{described['name']}, {threads} thread{'s' * (threads != 1)}"
    if batch := described["batch"]:
        line += f", {batch} image{'s' * (batch != 1)} a call"
    return [line, *map(_figure, described["figures"])]


def _figure(figure: Mapping[str, Any]) -> str:
    what = f"  {figure['engine']} ({figure['threads']})"
    if "note" in figure:
        return f"{what}: {figure['note']}"
    return f"{what}: {figure['alone_ms']:.3g} ms alone, {figure['image_ms']:.3g} ms in {figure['batch']}"


def _shown(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"up to {1000 * seconds:g} ms"


def run(config: Config, *, detach: bool = False) -> dict[str, Any]:
    """Start the endpoint and wait for SIGINT or SIGTERM; requests under way are answered before the end.

    Args:
        config: What is served and where.
        detach: Return at once and leave the endpoint running on the cluster in RAY_ADDRESS.

    Returns:
        `url`, `model`, `version` and `served_s`; of several models, `versions` by their names.

    Raises:
        DistmlError: It cannot be started.
    """
    if detach:
        _require_cluster()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        with processes.interruptible():
            deploy.require(config, before_ray=True)
            variables = deploy.prepare(config)
            stack.enter_context(cluster.connect(config, variables=variables, dashboard=False))
        answering = stack.enter_context(_signals())  # Ray sets handlers of its own when it starts
        with processes.interruptible():
            endpoint = deploy.start(config)
        ended = answering()
        _show(console, endpoint, time.monotonic() - began)
        if not detach:
            follow(console, endpoint.url, ended, _bases(config, endpoint.url), config.serve)
            console.print("ending: requests under way are answered first")
            deploy.stop()
    return {
        "url": endpoint.url,
        "model": endpoint.model,
        "version": endpoint.version,
        **({"versions": endpoint.versions} if endpoint.versions else {}),
        "served_s": round(time.monotonic() - began, 1),
    }


def stop(config: Config) -> dict[str, Any]:
    """End the endpoint that runs on the cluster in RAY_ADDRESS.

    Returns:
        `url`, where it answered.

    Raises:
        DistmlError: There is no cluster.
    """
    _require_cluster()
    with cluster.connect(config):
        deploy.stop()
    return {"url": deploy.url(config.serve)}


def _require_cluster() -> None:
    if cluster.address() is None:
        raise ConfigError(
            "--detach and --stop need a cluster that outlives this command.", "Set RAY_ADDRESS."
        )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], threading.Event]]:
    """Let SIGINT and SIGTERM interrupt the start, as there is nothing to lose while models load.

    Gives:
        What to call when the endpoint answers; it returns an event that the first signal then sets, so that
        requests under way are answered. The next one interrupts again.
    """
    ended = threading.Event()
    set_it = processes.setter(ended)
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in kinds}

    def end(*_: object) -> None:
        for number in kinds:
            signal.signal(number, _interrupt)
        set_it()

    def answering() -> threading.Event:
        for number in kinds:
            signal.signal(number, end)
        return ended

    for number in kinds:
        signal.signal(number, _interrupt)
    try:
        yield answering
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _bases(config: Config, url: str) -> dict[str, str] | None:
    """The address of each of several models; None of one."""
    return {name: base(config, url, name) for name in hosted(config)} if config.serve.models else None


def _show(console: Console, endpoint: Endpoint, seconds: float) -> None:
    url = endpoint.url
    versions = endpoint.versions or {endpoint.model: endpoint.version}
    named = ", ".join(f"{name} version {version}" for name, version in versions.items())
    verb = "answers" if len(versions) == 1 else "answer"
    of_first = f"{url}/models/{next(iter(versions))}" if endpoint.versions else url
    console.print(
        f"{named} {verb} at [bold]{url}[/bold] after {seconds:.1f} s\n"
        f"page       {url}/\n"
        f"picture    curl -F files=@PICTURE.png {of_first}/predict/image\n"
        f"described  {url}/openapi.json\n"
        f"metrics    {url}/metrics\n"
        "Ctrl-C ends it; a new champion is loaded while it runs."
    )
