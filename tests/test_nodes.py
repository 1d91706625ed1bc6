"""Several machines: what each is told, the Slurm job, and two network namespaces that train one model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command
from test_survival import add_data, until

from iis_finetune import process, runs
from iis_finetune.machine import computer, interface_to
from iis_finetune.observe import signs
from iis_finetune.runs import Nodes, Run

TWO = ("--nodes", "2", "--master", "10.0.0.1:29500")


def test_a_plan_for_two_nodes_counts_the_processes_of_both_and_prints_a_command_for_each(iis: Command) -> None:
    done = iis("plan", "tiny", "kit.global_batch_size=16", "kit.env={GLOO_SOCKET_IFNAME: eth7}", *TWO, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["arguments"]["gradient_accumulation_steps"] == 4, "2 rows x 4 x 2 processes"
    assert told["arguments"]["save_on_each_node"] is True and told["arguments"]["ddp_timeout"] > 86_400
    named = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert named.items() <= told["environment"].items()
    assert told["environment"]["GLOO_SOCKET_IFNAME"] == "eth7", "the recipe's word is the last"
    assert told["environment"]["NPROC_PER_NODE"] == "1" and told["environment"]["IIS_PROCESSES"] == "2"
    first, second = told["nodes"]
    assert "NODE_RANK=1" in second["plain"] and "FORCE_TORCHRUN=1 llamafactory-cli train" in second["plain"]
    assert first["train"].endswith("--nodes 2 --node-rank 0 --master 10.0.0.1:29500")


def test_a_plan_without_an_address_has_a_place_for_it(iis: Command) -> None:
    done = iis("plan", "tiny", "kit.global_batch_size=6", "--nodes", "3")
    assert done.returncode == 0 and "GLOO_SOCKET_IFNAME" not in done.stdout + done.stderr
    assert "--nodes 3 --node-rank 2 --master FIRST_NODE:29500" in done.stdout


WRONG = {
    ("--node-rank", "1", "--master", "10.0.0.1:29500"): "--nodes is not given",
    ("--nodes", "2"): "'' is not HOST:PORT",
    ("--nodes", "2", "--master", "10.0.0.1"): "'10.0.0.1' is not HOST:PORT",
    ("--nodes", "2", "--master", "a:1", "--node-rank", "2"): "2 nodes have the ranks 0 to 1, not 2",
    ("--nodes", "2", "--master", "a:1", "kit.launcher=single"): "a single process cannot be on several nodes",
    ("--nodes", "2", "--master", "a:1", "kit.launcher=fsdp"): "FSDP",
}


@pytest.mark.parametrize(("words", "said"), WRONG.items(), ids=str)
def test_what_cannot_be_a_node_is_refused_before_the_start(words: tuple[str, ...], said: str, iis: Command) -> None:
    done = iis("train", "tiny", *words)
    assert done.returncode in (2, 3) and said in done.stderr, done.stderr


ROUTE_TABLE = """\
Iface	Destination	Gateway	Flags	RefCnt	Use	Metric	Mask	MTU	Window	IRTT
eth0	00000000	0101A8C0	0003	0	0	0	00000000	0	0	0
eth0	0001A8C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
ib0	00004D0A	00000000	0001	0	0	0	0000FFFF	0	0	0
"""
CARDS = {"127.0.0.1": "lo", "10.77.3.4": "ib0", "192.168.1.9": "eth0", "8.8.8.8": "eth0", "no.such.host.invalid": None}


@pytest.mark.parametrize(("host", "card"), CARDS.items())
def test_the_card_that_leads_to_the_first_node_is_found(
    host: str, card: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "route").write_text(ROUTE_TABLE)
    monkeypatch.setattr(computer, "ROUTES", tmp_path / "route")
    assert interface_to(host) == card


def test_each_node_knows_its_place_and_not_the_cards_of_the_others() -> None:
    mine = Nodes(2, 0, "10.0.0.1", 29500, "eth0")
    assert [(each.rank, each.interface) for each in mine.all] == [(0, "eth0"), (1, None)]


def test_the_slurm_job_of_several_nodes_is_a_shell_script(iis: Command, project: Path) -> None:
    words = ("slurm", "tiny", 'run_name=it\'s "new"', "kit.global_batch_size=16")
    done = iis(*words, "--nodes", "2", "--on", "h100x4")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gpus-per-node=4" in done.stdout and "#SBATCH --requeue" in done.stdout
    assert "#SBATCH --signal=B:USR1@120" in done.stdout and "@" not in done.stdout.replace("USR1@120", "")
    assert iis(*words, "--nodes", "2", "--to", "job.sbatch").returncode == 0
    job = project / "job.sbatch"
    assert "--gpus-per-node" not in job.read_text()
    subprocess.run(["bash", "-n", str(job)], check=True)
    (project / "recipes" / "after.yaml").write_text((project / "recipes" / "tiny.yaml").read_text())
    unmade = ("model_name_or_path=null", "kit.base=tiny")
    refused = iis("slurm", "after", *unmade, "--to", "other.sbatch")
    assert refused.returncode == 2 and "'tiny' is not trained yet" in refused.stderr
    refused = iis("slurm", "tiny", "lora_rnak=8", "--to", "other.sbatch")
    assert refused.returncode == 2 and not (project / "other.sbatch").exists()


SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"\n'
SCONTROL = '#!/bin/bash\nif [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >>"$CALLS"; fi\n'


def test_a_slurm_job_saves_queues_itself_again_and_goes_on(python: Path, project: Path) -> None:
    """Stand-ins for srun, scontrol and the training; the job script and the kit are real."""
    bin_folder = python.parent
    kit = bin_folder / "iis-finetune"
    kit.write_text(f'#!/bin/sh\nexec "{python}" -m iis_finetune "$@"\n')
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (bin_folder / name).write_text(text)
    for name in ("srun", "scontrol", "iis-finetune"):
        (bin_folder / name).chmod(0o755)
    named = {"PYTHONPATH": str(ROOT), "CALLS": str(project / "calls"), "FAKE_STEP_SECONDS": "0.4"}
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]"}
    environment = {**os.environ, **named, **slurm, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    subprocess.run([str(kit), "slurm", "tiny", "--to", "job.sbatch"], cwd=project, env=environment, check=True)
    where = project / "runs" / "slurm-77" / "node-0"
    with subprocess.Popen(["bash", "job.sbatch"], cwd=project, env=environment) as job:
        until(lambda: any(where.glob("0001-tiny/output/checkpoint-2")), "a checkpoint", 60)
        job.send_signal(signal.SIGUSR1)
        job.wait(60)
    assert (project / "calls").read_text() == "requeue 77\n"
    run = Run(where / "0001-tiny")
    assert runs.state(run) == "stopped"
    kept = run.checkpoints()[-1].name
    again = subprocess.run(["bash", "job.sbatch"], cwd=project, env=environment, timeout=90, check=False)
    assert again.returncode == 0 and runs.state(run) == "finished"
    assert runs.attempts(run)[1].from_checkpoint == kept
    once_more = subprocess.run(["bash", "job.sbatch"], cwd=project, env=environment, timeout=60, check=False)
    assert once_more.returncode == 0 and len(runs.attempts(run)) == 2 and len(list(where.glob("0*"))) == 1
    assert (project / "calls").read_text() == "requeue 77\n"


JOIN_SECONDS, STEPS = 60, 60
NOTICED_SECONDS = 60.0  # a closed connection is seen at once; torchrun and the supervisor need the rest


def not_possible() -> str | None:
    if not shutil.which("ip"):
        return "needs iproute2 (scripts/install_debian_packages.sh)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    probe = ["unshare", "--net", "true"]
    return None if subprocess.run(probe, capture_output=True, check=False).returncode == 0 else "no namespaces here"


@dataclass(frozen=True)
class Node:
    """A network namespace with an address of its own, and the folder of its runs."""

    rank: int
    namespace: str
    project: Path

    @property
    def runs(self) -> Path:
        return self.project / f"runs-of-node-{self.rank}"

    @property
    def run(self) -> Run:
        return Run(max(self.runs.glob("0*")))

    def kit(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "IIS_RUNS": str(self.runs)}
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "iis_finetune", *words]
        return subprocess.run(
            command, cwd=self.project, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def train(self, *words: str) -> None:
        place = ("--nodes", "2", "--node-rank", str(self.rank), "--master", "10.77.0.1:29511")
        done = self.kit("train", "tiny", *WORDS, *words, *place, "--background")
        assert done.returncode == 0, done.stdout + done.stderr

    def pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def kill(self) -> None:
        """Everything in it, at once, as a power cut would; the kernel closes its connections."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)


WORDS = (
    f"max_steps={STEPS}",
    "save_steps=4",
    "dataset=many",
    "kit.global_batch_size=16",
    "lora_dropout=0.1",
    f'kit.env={{PET_RDZV_CONF: "timeout={JOIN_SECONDS}"}}',
)


@pytest.fixture
def two(project: Path) -> Iterator[tuple[Node, Node]]:
    reason = not_possible()
    if reason:
        pytest.skip(reason)
    add_data(project)
    pair = tuple(Node(rank, f"iis-{os.getpid()}-{rank}", project) for rank in (0, 1))
    cards = [f"iis{os.getpid() % 100000}v{node.rank}" for node in pair]
    try:
        for node in pair:
            ip("netns", "add", node.namespace)
        peer = ("peer", "name", cards[1], "netns", pair[1].namespace)
        ip("link", "add", cards[0], "netns", pair[0].namespace, "type", "veth", *peer)
        for node, card in zip(pair, cards, strict=True):
            ip("-n", node.namespace, "addr", "add", f"10.77.0.{node.rank + 1}/24", "dev", card)
            for name in ("lo", card):
                ip("-n", node.namespace, "link", "set", name, "up")
        yield pair[0], pair[1]
    finally:
        for node in pair:
            node.kill()
            subprocess.run(["ip", "netns", "del", node.namespace], capture_output=True, check=False)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def ended(nodes: Sequence[Node], seconds: float = 400) -> list[str]:
    def over() -> bool:
        return all(runs.state(node.run) not in ("starting", "running") for node in nodes)

    until(over, "the end of both", seconds)
    return [runs.state(node.run) for node in nodes]


def adapters(nodes: Sequence[Node]) -> set[bytes]:
    return {(node.run.output / "adapter_model.safetensors").read_bytes() for node in nodes}


def step(node: Node) -> int:
    found = list(node.runs.glob("0*"))
    return (signs(Run(max(found))).step or 0) if found else 0


def told(node: Node) -> list[dict[str, Any]]:
    return runs.events(node.run)


@pytest.mark.extended
@pytest.mark.parametrize("launcher", ["ddp", "zero2", "zero3"])
def test_two_nodes_train_one_is_killed_and_a_resume_on_both_ends_as_if_nothing_had_been(
    two: tuple[Node, Node], launcher: str
) -> None:
    """Also: a stop on the second node stops both, and a node that lost a checkpoint takes the others back with it."""
    first, second = two
    for node in two:
        node.train(f"kit.launcher={launcher}")
    assert ended(two) == ["finished", "finished"], [node.run.log.read_text()[-3000:] for node in two]
    whole = (first.run.output / "adapter_model.safetensors").read_bytes()
    if launcher == "zero3":
        assert runs.weights(second.run.output) == [], "the first node alone is given the whole weights"
    else:
        assert adapters(two) == {whole}
    for node in two:
        node.train(f"kit.launcher={launcher}")
    until(lambda: step(second) >= 9 and len(list(second.runs.glob("0*"))) == 2, "step 9")
    second.kill()
    killed_at = time.monotonic()
    until(lambda: any(event["event"] == "recovering" for event in told(first)), "notice", NOTICED_SECONDS)
    noticed = time.monotonic() - killed_at
    assert ended([first], 2 * JOIN_SECONDS + 120) == ["failed"]
    alone = time.monotonic() - killed_at
    assert "the other nodes did not come in time" in (runs.attempts(first.run)[-1].why or "")
    assert first.pids() == [] and runs.state(second.run) == "interrupted"
    shutil.rmtree(second.run.checkpoints()[-1])
    reached = step(second)
    for node in two:
        assert node.kit("resume", "last", "--background").returncode == 0
    until(lambda: len(runs.attempts(second.run)) == 2 and step(second) > reached, "a step beyond the kill's")
    stopped = second.kit("stop", "last")
    assert "stopped with checkpoint-" in stopped.stdout, stopped.stdout + stopped.stderr
    assert ended(two) == ["stopped", "stopped"]
    assert runs.attempts(first.run)[-1].why == "another node was asked to stop"
    for node in two:
        assert node.kit("resume", "last", "--background").returncode == 0
    until(lambda: len(runs.attempts(second.run)) == 3, "the last attempt")
    assert ended(two) == ["finished", "finished"]
    assert (first.run.output / "adapter_model.safetensors").read_bytes() == whole
    print(f"{launcher}: noticed after {noticed:.0f} s, ended after {alone:.0f} s (waits {JOIN_SECONDS} s for others)")
    assert not [who for node in two for who in node.pids() if process.identity(who)]


def commands() -> list[str]:
    lines = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("iis-finetune ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_page_is_one(line: str, iis: Command) -> None:
    """Those that only look are run; of the others every option is known, and the two nodes above have used them."""
    verb, *rest = line.replace("qwen7b_lora", "tiny").split()[1:]
    if verb in ("plan", "slurm"):
        done = iis(verb, *rest, "kit.global_batch_size=16")
        assert done.returncode == 0, done.stderr
    else:
        known = iis(verb, "--help").stdout
        assert [word for word in rest if word.startswith("--") and word not in known] == []
