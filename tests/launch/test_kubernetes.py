"""launch/kubernetes.yaml is valid, agrees with itself and knows the exit codes."""

import copy

import pytest
from support.stand_in import KUBERNETES


@pytest.fixture
def manifest():
    """Return the Service and the Job."""
    yaml = pytest.importorskip(
        "yaml", reason="PyYAML is not installed (it comes with kubernetes-validate)"
    )
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


@pytest.fixture
def validate():
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )

    def check(resource, version=None):
        schemas.validate(resource, version or schemas.latest_version(), strict=True)

    return check


@pytest.mark.parametrize("version", ["1.31", None])
def test_the_manifest_is_valid(manifest, validate, version):
    assert [resource["kind"] for resource in manifest] == ["Service", "Job"]
    for resource in manifest:
        validate(resource, version)


def container_of(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


SPOILED = [  # a change of the Job, the message
    (lambda job: job["spec"].update(backofLimit=3), "backofLimit"),
    (lambda job: job["spec"].update(completions="2"), "'2' is not of type"),
    (lambda job: container_of(job).pop("name"), "'name' is a required property"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILED)
def test_a_wrong_manifest_is_refused(manifest, validate, spoil, message):
    job = copy.deepcopy(manifest[1])
    spoil(job)
    with pytest.raises(Exception, match=message):
        validate(job)


def test_the_manifest_agrees_with_itself(manifest):
    service, job = manifest
    spec, pod, container = job["spec"], job["spec"]["template"]["spec"], container_of(job)
    assert (
        service["spec"]["clusterIP"] == "None"
        and service["spec"]["publishNotReadyAddresses"] is True
    )
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    assert [edit for edit in container["args"] if edit.startswith("runtime.processes=")] == [
        f"runtime.processes={spec['completions']}"
    ]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_manifests_exit_codes(manifest):
    spec = manifest[1]["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    actions = {
        code: rule["action"]
        for rule in rules
        if "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    }
    assert actions == {2: "FailJob", 3: "FailJob", 4: "FailJob", 75: "Ignore"}
    conditions = [
        (rule["action"], condition["type"])
        for rule in rules
        for condition in rule.get("onPodConditions", [])
    ]
    assert conditions == [("Ignore", "DisruptionTarget")]
    # The API server requires this of such a policy, beyond the schema.
    assert (
        spec["template"]["spec"]["restartPolicy"] == "Never"
        and spec["podReplacementPolicy"] == "Failed"
    )
    for rule in rules:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container_of(manifest[1])["name"]
            assert rule["onExitCodes"]["values"] == sorted(rule["onExitCodes"]["values"])


def test_the_manifests_command_is_the_trainer_itself(manifest):
    container = container_of(manifest[1])
    assert container["command"] == ["python", "-m", "jaxlm.train"]
    assert all(isinstance(argument, str) for argument in container["args"])
