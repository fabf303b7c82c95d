"""What can be known of the container files from their text. `docker/verify.sh` checks a finished image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nablad_service.serve import shown
from nablad_service.settings import Settings

ROOT = Path(__file__).parent.parent
HEALTHCHECK = ROOT / "docker" / "healthcheck.py"
OPERATING = (ROOT / "docs" / "operating.md").read_text()


class Instruction(NamedTuple):
    word: str
    rest: str


def instructions() -> list[Instruction]:
    """The Dockerfile's instructions, continued lines joined, comments left out."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [Instruction(*line.split(None, 1)) for line in text.splitlines() if line.strip()]


DOCKERFILE = instructions()
STARTS = [number for number, instruction in enumerate(DOCKERFILE) if instruction.word == "FROM"]


def finished(word: str) -> list[str]:
    """What the last stage says after each `word`."""
    return [instruction.rest for instruction in DOCKERFILE[STARTS[-1] :] if instruction.word == word]


def settings_variables() -> set[str]:
    return {f"NABLAD_{name.upper()}" for name in Settings.model_fields}


def compose() -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with mkdocs, in the dev extra")
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_the_base_image_is_an_argument_with_a_default() -> None:
    assert DOCKERFILE[0] == ("ARG", "BASE_IMAGE=python:3.12-slim")


def test_two_stages_share_the_base() -> None:
    assert [DOCKERFILE[start].rest for start in STARTS] == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]


def test_only_the_environment_and_the_health_check_reach_the_last_stage() -> None:
    assert finished("COPY") == [
        "--from=build /opt/nablad /opt/nablad",
        "docker/healthcheck.py /opt/nablad/healthcheck.py",
    ]
    assert not finished("ADD")


def test_dependencies_are_installed_before_any_source_is_copied() -> None:
    build = DOCKERFILE[: STARTS[-1]]
    (install,) = [
        n for n, (word, rest) in enumerate(build) if word == "RUN" and "-r requirements.txt" in rest
    ]
    copied = [rest for word, rest in build[:install] if word == "COPY"]
    assert copied == ["docker/requirements.py docker/", "pyproject.toml ./"]


def test_the_user_is_a_number_and_not_root() -> None:
    (user,) = finished("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_signals_reach_the_server_itself() -> None:
    (entrypoint,) = finished("ENTRYPOINT")
    assert json.loads(entrypoint) == ["nablad", "serve"]
    assert not finished("CMD")


def test_the_port_and_the_health_check_are_declared() -> None:
    assert finished("EXPOSE") == [str(Settings.model_fields["port"].default)]
    (check,) = finished("HEALTHCHECK")
    assert json.loads(check.split("CMD", 1)[1]) == ["python", "-IS", "/opt/nablad/healthcheck.py"]


def test_every_file_that_is_copied_is_let_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    sources = {
        source
        for word, rest in DOCKERFILE
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert sources == let_in
    assert all((ROOT / source).exists() for source in sources)


def test_every_package_of_the_wheel_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = " ".join(rest for word, rest in DOCKERFILE if word == "COPY").split()
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert package.split("/")[0] in copied


def requirements(extras: str) -> list[str]:
    script = ROOT / "docker" / "requirements.py"
    done = subprocess.run([sys.executable, script, extras], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout.split("\n")[:-1]


def test_requirements_are_those_of_the_project_and_its_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    expected = [*project["dependencies"], *optional["service"], *optional["cuda"]]
    assert requirements("service,cuda") == list(dict.fromkeys(expected))


def test_requirements_never_name_the_project_itself() -> None:
    # A registry might have an answer to that name, and it would not be ours.
    assert not [line for line in requirements("dev") if line.startswith("nablad")]


def test_an_unknown_extra_is_refused() -> None:
    with pytest.raises(ValueError, match="no extra is called 'gpu'; there are service, cuda"):
        requirements("gpu")


def healthcheck(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    host, port = url.removeprefix("http://").split(":")
    variables = {"NABLAD_HOST": host, "NABLAD_PORT": port, "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-IS", HEALTHCHECK, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_health_check_passes_beside_a_server(url: str, host: str) -> None:
    done = healthcheck(url.replace("127.0.0.1", host))
    assert done.returncode == 0
    assert done.stdout.startswith('200 {"status":"ready"')


def test_the_health_check_fails_without_a_server() -> None:
    done = healthcheck("http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stdout.startswith("no answer from 127.0.0.1:9")


def test_the_health_check_fails_where_the_server_says_no(url: str) -> None:
    done = healthcheck(url, "/health/nothing")
    assert done.returncode == 1
    assert done.stdout.startswith("404")


def test_compose_publishes_on_loopback_only() -> None:
    services = compose()["services"]
    assert set(services) == {"nablad", "gpu"}
    ports = [port for service in services.values() for port in service["ports"]]
    assert ports[0] == "127.0.0.1:8421:8421"
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", ["nablad", "gpu"])
def test_compose_runs_a_hardened_container(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][-1] == "/opt/nablad/healthcheck.py"
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["drain_seconds"].default


@pytest.mark.parametrize(
    ("variable", "volume"), [("NABLAD_REPOSITORY", "models"), ("NABLAD_CHECKPOINTS", "training")]
)
def test_models_and_saves_outlive_a_container(variable: str, volume: str) -> None:
    """A volume a service: two servers share neither a repository nor saves."""
    said = " ".join(finished("ENV")).split()
    (folder,) = [one.split("=")[1] for one in said if one.startswith(f"{variable}=")]
    (made,) = [rest for rest in finished("RUN") if f" {folder}" in rest]
    assert re.search(rf"install -d -o nablad -g nablad -m 0755 [^&]*{folder}\b", made)
    described = compose()
    mounted = {
        name: [one.split(":")[0] for one in service["volumes"] if one.split(":")[1] == folder]
        for name, service in described["services"].items()
    }
    assert mounted == {"nablad": [volume], "gpu": [f"{volume}-gpu"]}
    assert {volume, f"{volume}-gpu"} <= set(described["volumes"])


def test_the_gpu_service_needs_its_profile_a_gpu_and_the_extra() -> None:
    service = compose()["services"]["gpu"]
    assert service["profiles"] == ["gpu"]
    assert service["build"]["args"]["EXTRAS"] == "service,cuda"
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize(
    "file",
    ["Dockerfile", "docker-compose.yml", "docker/healthcheck.py", "docker/verify.sh", "docs/operating.md"],
)
def test_every_variable_that_is_named_is_a_setting(file: str) -> None:
    named = set(re.findall(r"\bNABLAD_[A-Z_]*[A-Z]\b", (ROOT / file).read_text()))
    assert named <= settings_variables()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    default = Settings.model_fields[name].default
    row = f"| `--{name.replace('_', '-')}` | `NABLAD_{name.upper()}` | `{shown(default)}` | "
    assert OPERATING.count(row) == 1


def test_every_file_that_the_manual_names_exists() -> None:
    for target in re.findall(r"`((?:docker|docs)[/-][\w./-]+)", OPERATING):
        assert (ROOT / target).exists(), target


def test_what_verify_asks_of_an_image_this_server_answers(url: str) -> None:
    variables = {**os.environ, "NABLAD_PORT": url.rsplit(":", 1)[1]}
    done = subprocess.run(
        [sys.executable, ROOT / "docker" / "exercise.py"], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "second call" in done.stdout
