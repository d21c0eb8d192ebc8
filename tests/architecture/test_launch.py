"""The launch files in examples/ parse, and what they ask of remask exists."""

import shlex
import shutil
import subprocess

import pytest
import yaml

from remask.recipe import choose
from tests.architecture.commands import fault_in_remask
from tests.architecture.source import ROOT

FOLDER = ROOT / "examples" / "launch"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
KUBERNETES = FOLDER / "kubernetes.yaml"


def arguments(words: list[str]) -> list[str]:
    """What `remask` gets, as a command line of remask; values that a shell fills in are words too."""
    begin, end = words.index("remask"), words.index("||") if "||" in words else None
    return [word for word in words[begin:end] if word != "$@"]


def of_script(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return arguments(shlex.split(next(line for line in lines if "remask pretrain" in line and line[0] != "#")))


def of_kubernetes() -> list[str]:
    pod = next(part for part in yaml.safe_load_all(KUBERNETES.read_text()) if part["kind"] == "Job")["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["torchrun"]
    return arguments(container["args"])


def test_there_are_some() -> None:
    assert [path.name for path in SCRIPTS] == ["single_node.sh", "slurm.sbatch"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: object) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [*(of_script(p.read_text()) for p in SCRIPTS), of_kubernetes()], ids=lambda w: w[-1])
def test_what_remask_is_asked_exists(words: list[str]) -> None:
    assert words[:2] == ["remask", "pretrain"]
    assert not fault_in_remask(words)
    assert any(word.startswith("--out") for word in words), "a run that is started anew has to be found"


def test_kubernetes_asks_for_a_recipe_and_keys_that_exist() -> None:
    given = dict(word.removeprefix("--").split("=", 1) for word in of_kubernetes() if word.startswith("--"))
    assert choose(given["recipe"], settings=[given["set"]]).runtime.parallel == "fsdp"


def test_kubernetes_pods_find_one_another() -> None:
    service, job = yaml.safe_load_all(KUBERNETES.read_text())
    spec = job["spec"]
    assert (spec["completionMode"], service["spec"]["clusterIP"]) == ("Indexed", "None")
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    endpoint = f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    given = spec["template"]["spec"]["containers"][0]["args"]
    assert f"--rdzv-endpoint={endpoint}" in given
    assert f"--nnodes={spec['completions']}" in given
