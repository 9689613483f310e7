"""The Kubernetes manifests are valid, and what they say fits together."""

import copy
import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.cluster.manifests import document, documents, keys_and_values, launched, schema

JOB, JOBSET = "kubernetes-job.yaml", "kubernetes-jobset.yaml"
OLDEST, NEWEST = "1.33", "1.37"  # the oldest that has what we use enabled, the newest that the validator knows


def job() -> dict[str, Any]:
    return document(JOB, "Job")


def jobset() -> dict[str, Any]:
    return document(JOBSET, "JobSet")


def inner_job() -> dict[str, Any]:
    (replicated,) = jobset()["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inner"}, **replicated["template"]}


def closed(node: Any) -> Any:
    """The schema with unknown keys refused, as a server refuses them that is asked for strict validation."""
    if isinstance(node, list):
        return [closed(value) for value in node]
    if not isinstance(node, dict):
        return node
    inside = {key: closed(value) for key, value in node.items()}
    return {"additionalProperties": False} | inside if isinstance(node.get("properties"), dict) else inside


def check(document: dict[str, Any]) -> None:
    if document["kind"] == "JobSet":
        jsonschema.validate(document["spec"], closed(schema("jobset.json")), jsonschema.Draft202012Validator)
        return
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", [JOB, JOBSET])
def test_every_document_is_valid(name: str) -> None:
    for each in documents(name):
        check(each)
    check(inner_job())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backOffLimitPerIndex"), 1),
        (("spec", "completions"), "two"),
        (("spec", "podFailurePolicy", "rules", 0, "action"), 75),
        (("spec", "template", "spec", "containers", 0, "volumeMounts", 0, "path"), "/shared"),
        (("spec", "template", "spec", "terminationGracePeriod"), 600),
    ],
)
def test_the_validator_refuses_a_damaged_job(path: tuple[Any, ...], value: Any) -> None:
    for whole in (job(), inner_job()):
        place = damaged = copy.deepcopy(whole)
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            check(damaged)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("failurePolicy", "maxRestart"), 10),
        (("failurePolicy", "restartStrategy"), "Recreate all"),
        (("failurePolicy", "rules", 0, "action"), "Restart"),
        (("network", "enableDNSHostnames"), "yes"),
        (("replicatedJobs", 0, "replicas"), -1),
    ],
)
def test_the_validator_refuses_a_damaged_jobset(path: tuple[Any, ...], value: Any) -> None:
    damaged = jobset()
    place = damaged["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(damaged)


def pod(of: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = of["spec"]["template"]["spec"]
    return spec


def command(of: dict[str, Any]) -> list[str]:
    (container,) = pod(of)["containers"]
    return [*container["command"], *container["args"]]


@pytest.mark.parametrize("of", [job(), inner_job()], ids=["job", "jobset"])
def test_each_machine_is_launched_with_its_number_and_all_its_gpus(of: dict[str, Any]) -> None:
    spec, (container,) = of["spec"], pod(of)["containers"]
    assert spec["completionMode"] == "Indexed"
    (machine,) = [each for each in container["env"] if each["name"] == "MACHINE"]
    assert "job-completion-index" in machine["valueFrom"]["fieldRef"]["fieldPath"]
    options = launched(command(of), {"MACHINE": "1"})
    assert options.rank == 1
    assert options.machines == spec["completions"] == spec["parallelism"]
    assert options.processes == container["resources"]["limits"]["nvidia.com/gpu"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "shared"]
    assert options.run_dir.is_relative_to(mount["mountPath"])


def test_machine_0_is_found_by_the_headless_service() -> None:
    options, service, name = launched(command(job()), {"MACHINE": "0"}), document(JOB, "Service"), "rlvr"
    assert options.main_address == f"{job()['metadata']['name']}-0.{pod(job())['subdomain']}"
    assert pod(job())["subdomain"] == service["metadata"]["name"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True  # they meet before they are ready
    labels = job()["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_machine_0_of_a_jobset_is_found_by_the_name_that_jobset_gives_it() -> None:
    options, (replicated,) = launched(command(inner_job()), {"MACHINE": "0"}), jobset()["spec"]["replicatedJobs"]
    name = jobset()["metadata"]["name"]
    assert options.main_address == f"{name}-{replicated['name']}-0-0.{name}"
    assert jobset()["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}


def test_both_run_the_same_pod() -> None:
    """Other than the name of machine 0, and the subdomain, which JobSet sets itself."""
    one, other = pod(job()), pod(inner_job())
    assert one.pop("subdomain")
    for each in (one, other):
        words = each["containers"][0]["command"]
        each["containers"][0]["command"] = [word for word in words if not word.startswith("--main-address=")]
    assert one == other


@pytest.mark.parametrize("of", [job(), inner_job()], ids=["job", "jobset"])
def test_the_pod_is_not_root_and_holds_no_secret(of: dict[str, Any]) -> None:
    spec, (container,) = pod(of), pod(of)["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "TOKEN" in each["name"]}
    secrets |= {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "KEY" in each["name"]}
    assert set(secrets) == {"HF_TOKEN", "WANDB_API_KEY"}
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["memory"]["emptyDir"]["medium"] == "Memory"
    assert {"name": "memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
    claims = [document(name, "PersistentVolumeClaim") for name in (JOB, JOBSET)]
    assert {claim["metadata"]["name"] for claim in claims} == {volumes["shared"]["persistentVolumeClaim"]["claimName"]}
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in claims)
    assert "value" not in dict(keys_and_values(secrets))


def first_rule(of: dict[str, Any], status: int) -> str:
    """What Kubernetes does with a pod whose container ended so: the first rule that fits, else it counts."""
    for rule in of["spec"]["podFailurePolicy"]["rules"]:
        wanted = rule.get("onExitCodes")
        if wanted is not None:
            assert wanted["operator"] == "In"
            assert wanted["containerName"] == pod(of)["containers"][0]["name"]
            if status in wanted["values"]:
                return str(rule["action"])
    return "Count"


def test_a_job_starts_again_after_75_and_ends_after_2() -> None:
    assert {status: first_rule(job(), status) for status in (75, 2, 1, 137)} == {
        75: "Ignore",
        2: "FailJob",
        1: "Count",
        137: "Count",
    }
    assert {"type": "DisruptionTarget", "status": "True"} in [
        condition
        for rule in job()["spec"]["podFailurePolicy"]["rules"]
        if rule["action"] == "Ignore"
        for condition in rule.get("onPodConditions", [])
    ]
    # Of the rules' requirements: pods that are started again by the Job, not by the node.
    assert pod(job())["restartPolicy"] == "Never"
    assert job()["spec"]["maxFailedIndexes"] == 0
    assert job()["spec"]["backoffLimitPerIndex"] > 0


# How the Job controller of Kubernetes words why a rule failed a job.
EXITED = "Container trainer for pod ml/rlvr-trainer-0-0-x7k2p failed with exit code {} matching FailJob rule at index 0"
EVICTED = "Pod ml/rlvr-trainer-0-0-x7k2p has condition DisruptionTarget matching FailJob rule at index 1"


def jobset_action(reason: str, message: str) -> str:
    for rule in jobset()["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return str(rule["action"])
    return "RestartJobSet"  # counted against maxRestarts


def test_a_jobset_starts_again_together_after_75_and_ends_after_2() -> None:
    assert [first_rule(inner_job(), status) for status in (75, 2, 1, 25)] == ["FailJob", "FailJob", "Count", "Count"]
    assert inner_job()["spec"]["backoffLimit"] == 0
    assert jobset_action("PodFailurePolicy", EXITED.format(75)) == "RestartJobSetAndIgnoreMaxRestarts"
    assert jobset_action("PodFailurePolicy", EVICTED) == "RestartJobSetAndIgnoreMaxRestarts"
    assert jobset_action("PodFailurePolicy", EXITED.format(2)) == "FailJobSet"
    assert jobset_action("BackoffLimitExceeded", "Job has reached the specified backoff limit") == "RestartJobSet"
    names = [rule["name"] for rule in jobset()["spec"]["failurePolicy"]["rules"]]
    assert len(set(names)) == 2
    assert jobset()["spec"]["failurePolicy"]["maxRestarts"] > 0
