"""The compose file and the SkyPilot file are valid; they and the Dockerfile fit together."""

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scripts.launch import parser
from tests.cluster.manifests import CLUSTER, documents, launched, schema
from tests.cluster.shells import found_command
from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def compose() -> dict[str, Any]:
    (read,) = documents("compose.yaml")
    return read


def test_compose_is_valid_and_its_validator_is_not_blind() -> None:
    check = jsonschema.Draft7Validator(schema("compose.json")).validate
    check(compose())
    for damage in ({"shm-size": "1gb"}, {"command": 3}, {"restart": True}, {"deploy": {"resource": {}}}):
        damaged = copy.deepcopy(compose())
        damaged["services"]["trainer"] |= damage
        with pytest.raises(jsonschema.ValidationError):
            check(damaged)


def test_compose_launches_the_image_that_it_builds() -> None:
    trainer = compose()["services"]["trainer"]
    assert (CLUSTER / trainer["build"]["context"]).resolve() == ROOT
    assert set(trainer["build"]["args"]) == set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
    options = launched(trainer["command"], {})
    assert options.machines == 1
    mounts = dict(volume.split(":") for volume in trainer["volumes"])
    assert set(mounts) == set(compose()["volumes"])
    workdir = re.findall(r"^WORKDIR (\S+)", DOCKERFILE, re.M)[-1]
    assert (Path(workdir) / options.run_dir).is_relative_to(mounts["runs"])
    # Docker gives a new volume the owner of the folder that it covers.
    (owned,) = re.findall(r"install -d -o rlvr -g rlvr (.+)", DOCKERFILE)
    assert set(mounts.values()) <= set(owned.split())
    (device,) = trainer["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert all("=" not in variable for variable in trainer["environment"])  # secrets come from the shell


def test_image_is_pinned_unprivileged_and_checks_its_health() -> None:
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert len(stages) == 2
    pinned = re.compile(r"nvidia/cuda:\d+\.\d+\.\d+-(devel|runtime)-ubuntu24\.04@sha256:[0-9a-f]{64}")
    assert all(pinned.fullmatch(stage) for stage in stages)
    assert len({stage.split(":")[1].split("-")[0] for stage in stages}) == 1
    assert "-runtime-" in stages[-1]
    shipped = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    (user,) = re.findall(r"^USER (\d+)$", shipped, re.M)
    assert f"--uid {user} rlvr" in shipped
    pods = [pod for name in ("job", "jobset") for pod in re.findall(r"runAs(?:User|Group): (\d+)", text_of(name))]
    assert set(pods) == {user}
    assert re.search(r'^HEALTHCHECK .*CMD \["rlvr", "doctor"\]$', shipped, re.M)
    assert '".[${EXTRAS}]"' in DOCKERFILE
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M):
        assert all((ROOT / source).exists() for source in sources.split()), sources


def text_of(kind: str) -> str:
    return (CLUSTER / f"kubernetes-{kind}.yaml").read_text()


# ---- SkyPilot -------------------------------------------------------------------------------------------------------


def sky() -> dict[str, Any]:
    (read,) = documents("skypilot.yaml")
    return read


def in_any_case(validator: Any, allowed: list[str], value: str, _: Any) -> Iterator[jsonschema.ValidationError]:
    """A keyword of SkyPilot's own."""
    if value.lower() not in [each.lower() for each in allowed]:
        yield jsonschema.ValidationError(f"{value!r} is not one of {allowed}")


SkyValidator = jsonschema.validators.extend(jsonschema.Draft7Validator, {"case_insensitive_enum": in_any_case})


def check_sky(task: dict[str, Any]) -> None:
    schemas = schema("skypilot.json")
    SkyValidator(schemas["task"]).validate(task)
    SkyValidator(schemas["resources"]).validate(task["resources"])
    for mount in task["file_mounts"].values():
        SkyValidator(schemas["storage"]).validate(mount)


def test_skypilot_is_valid_and_its_validator_is_not_blind() -> None:
    check_sky(sky())
    damages: list[tuple[tuple[str, ...], Any]] = [
        (("num_node",), 2),
        (("resources", "spot"), True),
        (("resources", "job_recovery", "recover_on_exit_codes"), [475]),
        (("file_mounts", "/shared", "mode"), "MOUNT-CACHED"),
        (("file_mounts", "/shared", "config", "mount_cached", "transfer"), 1),
    ]
    for path, value in damages:
        place = damaged = sky()
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            check_sky(damaged)
    assert 75 in sky()["resources"]["job_recovery"]["recover_on_exit_codes"]


def test_skypilot_launches_each_machine(tmp_path: Path) -> None:
    """Its `run` with the variables that SkyPilot sets, on machine 1 of 2, and a Python that prints its arguments."""
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/bash\n" + sky()["run"])
    subprocess.run([found_command("shellcheck"), str(script)], check=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\necho "wandb: ${WANDB_API_KEY-absent}"\n')
    python.chmod(0o755)
    ranks = {"SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    variables = ranks | {"SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.9"} | sky()["envs"] | sky()["secrets"]
    bash = shutil.which("bash")
    done = subprocess.run([str(bash), str(script)], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entry, *words, wandb = done.stdout.splitlines()
    assert entry == "scripts/launch.py"
    assert wandb == "wandb: absent"
    options = parser().parse_args(words)
    assert (options.processes, options.machines, options.rank, options.main_address) == (8, 2, 1, "10.0.0.4")
    assert all((ROOT / file).is_file() for file in (options.config, options.recipe))
    assert options.run_dir.is_relative_to(*sky()["file_mounts"])
    assert yaml.safe_load((ROOT / options.config).read_text())["compute_environment"] == "LOCAL_MACHINE"
