"""Every environment variable, parsed and checked once."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from . import __version__
from .errors import ConfigError
from .wire.checksum import ChecksumType
from .wire.etl_spec import split_packages
from .wire.pipeline import check_url

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
REDACTED = "***"
_CREDENTIALS = re.compile(
    r"""(?ix) (?<=://)[^/?\#\s]+(?=@)                                                 # user and password
    | ( (?:[?&]|%3F|%26) (?: x-(?:amz|goog)-(?:signature|credential|security-token)    # what signs a URL
        | awsaccesskeyid | signature | sig | (?:access_|auth_)?token | api_?key ) (?:=|%3D) ) (?:(?!%26)[^&\s"'<>])+
    | ( \bbearer[ ] ) [\w.~+/=-]{8,}"""
)


class Settings(BaseSettings):
    """The settings of a server process. Field names are for Python, the aliases are the environment's variables.

    Raises:
        ConfigError: a value is bad; by `Settings.load()`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=True, env_ignore_empty=True)

    host: str = Field("0.0.0.0", alias="ETL_HOST")  # noqa: S104 - a container's server is reached from outside
    """Address to listen on."""
    port: int = Field(8000, alias="ETL_PORT", ge=0, le=65535)
    """Port to listen on; 0: any free one."""
    reuse_port: bool = Field(False, alias="ETL_REUSE_PORT")
    """Share the port with other servers that were started with this: a new one takes over from an old one."""
    workers: int = Field(
        default_factory=lambda: available_cpus(), validation_alias=AliasChoices("ETL_WORKERS", "NUM_WORKERS"), ge=1
    )
    """Worker processes. Default: the CPUs that this process may use."""
    log_level: LogLevel = Field("info", alias="ETL_LOG_LEVEL")
    log_format: Literal["text", "json"] = Field("text", alias="ETL_LOG_FORMAT")
    """How a server writes its logs: one line an event."""
    access_log: bool = Field(False, alias="ETL_ACCESS_LOG")
    """Log each object that is done, too."""
    metrics: bool = Field(True, alias="ETL_METRICS")
    """Count objects, and show the numbers at `/metrics`."""
    metrics_directory: str = Field("", alias="PROMETHEUS_MULTIPROC_DIR")
    """Where the processes of one server have the files of their numbers. `etl-server serve` makes one by itself."""

    host_target: SecretStr = Field(SecretStr(""), alias="AIS_TARGET_URL")
    """The target that this server belongs to. The last part of its path is a bearer secret."""
    direct_put: bool = Field(False, alias="DIRECT_PUT")
    """Whether the ETL was started with direct put. For the user's class: a pipeline is followed regardless."""
    direct_fqn: bool = Field(False, alias="ETL_DIRECT_FQN")
    """Give `transform` the path of a local file instead of its content."""
    direct_put_retries: int = Field(3, alias="AIS_DIRECT_PUT_RETRIES", ge=0)
    """How many times a broken delivery is repeated."""
    direct_put_chunk_size: int = Field(1024 * 1024, alias="AIS_DIRECT_PUT_CHUNK_SIZE", ge=1)
    """Bytes of a streamed result that wait for a slow receiver before the transform is paused."""

    ais_endpoint: str = Field("", alias="AIS_ENDPOINT")
    """URL of a gateway of AIStore, for what asks a cluster: object stores, `etl-server ais`."""
    authn_token: SecretStr = Field(SecretStr(""), alias="AIS_AUTHN_TOKEN")
    """Bearer token for requests to targets and gateways."""
    skip_verify: bool = Field(False, validation_alias=AliasChoices("AIS_SKIP_VERIFY_CRT", "AIS_SKIP_VERIFY"))
    """Do not verify targets' certificates."""
    client_ca: Path | None = Field(None, alias="AIS_CLIENT_CA")
    """PEM file of the authorities to verify targets' certificates by."""
    client_crt: Path | None = Field(None, alias="AIS_CRT")
    """PEM file of the client certificate to show to targets."""
    client_key: Path | None = Field(None, alias="AIS_CRT_KEY")
    """PEM file of its key."""

    max_connections: int = Field(256, alias="MAX_CONN", ge=1)
    """Outbound connections at once."""
    max_keepalive_connections: int = Field(128, alias="MAX_KEEPALIVE_CONN", ge=0)
    """Idle outbound connections to keep."""
    keepalive_expiry: float = Field(30.0, alias="KEEPALIVE_EXPIRY", ge=0, allow_inf_nan=False)
    """Seconds after which an idle outbound connection is closed."""
    io_timeout: float = Field(300.0, alias="ETL_IO_TIMEOUT", gt=0, allow_inf_nan=False)
    """Seconds without a byte after which a connection counts as lost, be it ours to others or a client's to us."""

    source: str = Field("", alias="ETL_SOURCE")
    """URI of the object store that GET reads from; empty: the target."""
    sink: str = Field("", alias="ETL_SINK")
    """URI of the object store that the results of PUT go to; empty: they are the answer."""
    ray_address: str = Field("", alias="RAY_ADDRESS")
    """Of the Ray cluster that does the work of a job on Ray; empty: one on this machine."""
    image: str = Field(f"etl-server:{__version__}", alias="ETL_IMAGE")
    """The container image that serves shipped classes."""

    checksum: ChecksumType | None = Field(None, alias="ETL_CHECKSUM")
    """Checksum to send along with a direct put whose size is known."""
    ws_error: Literal["close", "text"] = Field("close", alias="ETL_WS_ERROR")
    """How a WebSocket reports the failure of an object that no acknowledgement was due for."""
    max_body: int | None = Field(None, alias="ETL_MAX_BODY", ge=0)
    """Largest object in bytes that is taken; a larger one is answered with 413."""
    max_memory: int = Field(default_factory=lambda: available_memory() // 2, alias="ETL_MAX_MEMORY", ge=1024 * 1024)
    """Bytes that the objects in flight may take up, in all workers together. Default: half of what there is."""
    fqn_roots: Annotated[tuple[Path, ...], NoDecode] = Field((), alias="ETL_FQN_ROOTS")
    """Directories below which `etl_fqn` may read, separated by colons. Default: AIStore's on-disk layout."""
    object_timeout: float | None = Field(None, alias="ETL_OBJECT_TIMEOUT", gt=0, allow_inf_nan=False)
    """Seconds that a transform may take for one object, or a stream between two pieces. Default: any time."""
    watchdog: float | None = Field(None, alias="ETL_WATCHDOG", gt=0, allow_inf_nan=False)
    """Seconds for which a process's event loop may stand still before the process ends. Default: any time."""
    drain_timeout: float = Field(60.0, alias="ETL_DRAIN_TIMEOUT", ge=0, allow_inf_nan=False)
    """Seconds in which a server that is told to stop has to finish what is in flight, and end."""
    drain_delay: float = Field(0.0, alias="ETL_DRAIN_DELAY", ge=0, allow_inf_nan=False)
    """Seconds that it goes on taking connections before it finishes, for load balancers to see that it is not ready."""

    class_payload: str = Field("", alias="ETL_CLASS_PAYLOAD", repr=False)
    """The class to serve, as `serialize_class` gives it."""
    class_payload_file: Path | None = Field(None, alias="ETL_CLASS_PAYLOAD_FILE")
    """A file that has it: one environment variable holds 128 KiB."""
    class_meta: str = Field("", alias="ETL_CLASS_META", repr=False)
    """What `etl-server ship` wrote beside the payload: JSON."""
    class_meta_file: Path | None = Field(None, alias="ETL_CLASS_META_FILE")
    """A file that has it."""
    payload_key: SecretStr = Field(SecretStr(""), alias="ETL_PAYLOAD_KEY")
    """If set, only payloads that are signed with it are loaded."""
    packages: Annotated[tuple[str, ...], NoDecode] = Field((), alias="PACKAGES")
    """What pip is to install before the class is loaded: requirements, separated by commas."""
    os_packages: Annotated[tuple[str, ...], NoDecode] = Field((), alias="OS_PACKAGES")
    """What apt-get or apk is to install before the class is loaded: names, separated by commas."""

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read the environment; `overrides` (by field name, None is passed over) win over it.

        Raises:
            ConfigError: a value is bad. One line: variable, value, what was expected.
        """
        if os.environ.get("ETL_PAYLOAD_KEY") == "":  # a secret that got lost must not turn the check off
            raise ConfigError("ETL_PAYLOAD_KEY=: expected a key, or no such variable")
        try:
            return cls(**{_alias(name): value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None

    @field_validator("log_level", "log_format", "ws_error", "checksum", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.strip().lower()
        return None if value == "none" else value

    @field_validator("fqn_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part for part in value.split(os.pathsep) if part]
        for root in value:
            if not Path(root).is_absolute():
                raise ValueError(f"absolute directories separated by '{os.pathsep}'")
        return value

    @field_validator("packages", "os_packages", mode="before")
    @classmethod
    def _split_packages(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = split_packages(value)
        if any(part.startswith("-") for part in value):
            raise ValueError("names of packages, separated by commas, and no options")
        return value

    @field_validator("class_payload_file", "class_meta_file")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        if value is not None and not (value.is_file() and os.access(value, os.R_OK)):
            raise ValueError("a file that can be read")
        return value

    @field_validator("client_ca", "client_crt", "client_key")
    @classmethod
    def _readable_file(cls, value: Path | None) -> Path | None:
        if value is not None and not (value.is_file() and os.access(value, os.R_OK)):
            raise ValueError("a PEM file that can be read")
        return value

    @field_validator("host_target")
    @classmethod
    def _http_url(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value().rstrip("/")
        if url:
            try:
                parts = urlsplit(url)
                valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            except ValueError:
                valid = False
            if not valid:
                raise ValueError("http(s)://target:port/v1/etl/_object/<etl-name>/<secret>")
        return SecretStr(url)

    @field_validator("drain_delay")
    @classmethod
    def _drain_delay(cls, value: float, info: ValidationInfo) -> float:
        timeout = info.data.get("drain_timeout")
        if timeout is not None and value >= timeout and value > 0:
            raise ValueError(f"less than ETL_DRAIN_TIMEOUT={timeout:g}, or nothing can be finished after it")
        return value

    @field_validator("ais_endpoint")
    @classmethod
    def _ais_endpoint(cls, value: str) -> str:
        return check_endpoint(value) if value else ""

    def secrets(self) -> tuple[str, ...]:
        """The strings that must never be shown: the last part of the target's path, tokens, and keys."""
        own = (self.authn_token.get_secret_value(), self.payload_key.get_secret_value())
        return _secrets(self.host_target.get_secret_value(), *own)

    def redact(self, text: str) -> str:
        """`text` without any secret in it: those of this process, and what looks like one in a URL or a header."""
        return _without(self.secrets(), text)


def redact(text: str) -> str:
    """As `Settings.redact`, with the secrets of the environment: also where that makes no settings."""
    names = ("AIS_TARGET_URL", "AIS_AUTHN_TOKEN", "ETL_PAYLOAD_KEY")
    return _without(_secrets(*(os.environ.get(name, "") for name in names)), text)


def tell(text: str) -> None:
    """Say on stderr, without a secret, why a command ends."""
    print(f"etl-server: {redact(text)}", file=sys.stderr)


def _secrets(target: str, *others: str) -> tuple[str, ...]:
    try:
        path = urlsplit(target.rstrip("/")).path
    except ValueError:  # no URL, and still no less secret
        path = target.rstrip("/")
    aws = (os.environ.get(name, "") for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"))
    secrets = (secret for secret in (path.rpartition("/")[2], *others, *aws) if secret)
    return tuple(sorted(secrets, key=len, reverse=True))  # one may be a part of another


def _without(secrets: tuple[str, ...], text: str) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, REDACTED)
    return _CREDENTIALS.sub(lambda match: f"{match[1] or match[2] or ''}{REDACTED}", text)


def check_endpoint(url: str) -> str:
    """The URL of a cluster's proxy, without a slash at its end.

    Raises:
        ValueError: it is none. The text says what was expected.
    """
    expected = "the URL of the cluster's proxy, such as http://proxy:51080, without user, path and query"
    try:
        parts = check_url(url)
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    if port == 0 or "@" in parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(expected)
    return f"{parts.scheme}://{parts.netloc}"


def cache_directory() -> Path:
    """Where this user's programs keep what they can do without: `XDG_CACHE_HOME`, or `~/.cache`; in it, our part."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "etl-server"


def available_cpus() -> int:
    """The CPUs that this process may use: its affinity, bounded by the cgroup's quota (v2 or v1), at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpu_quota(Path("/sys/fs/cgroup"))
    return max(1, min(cpus, int(quota)) if quota is not None else cpus)


def available_memory() -> int:
    """The bytes of memory that this process may use: the machine's, bounded by the cgroup's limit (v2 or v1)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return min(limits)


def _cgroup_cpu_quota(root: Path) -> float | None:
    """CPUs that the cgroup mounted at `root` allows, or None where it sets no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


_EXPECTED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    variable = str(first["loc"][0]) if first["loc"] else "settings"
    expected = _EXPECTED.get(first["type"]) or first["msg"].removeprefix("Value error, ").removeprefix(
        "Input should be "
    )
    hidden = variable in ("AIS_TARGET_URL", "AIS_AUTHN_TOKEN", "host_target", "authn_token")
    shown = REDACTED if hidden else redact(str(first["input"]))
    return f"{_variable(variable)}={shown}: expected {expected}"


def _alias(name: str) -> str:
    """The name by which a value for a field is given: only the environment's count, so that `port` is no variable."""
    field = Settings.model_fields[name]
    if field.alias:
        return field.alias
    choices = field.validation_alias
    return str(choices.choices[0]) if isinstance(choices, AliasChoices) else name


def _variable(name: str) -> str:
    """The environment's name of a setting; of several, the one that is set."""
    field = Settings.model_fields.get(name)
    if field is not None and field.alias:
        return field.alias
    for known in Settings.model_fields.values():
        choices = known.validation_alias
        if isinstance(choices, AliasChoices) and (known is field or name in choices.choices):
            names = [str(choice) for choice in choices.choices]
            return next((choice for choice in names if os.environ.get(choice)), names[0])
    return name
