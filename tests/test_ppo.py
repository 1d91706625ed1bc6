"""Stage ppo: its own environment, argument table, hook and reward model; the real training where it is built."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setup_plan
from conftest import RECIPE, ROOT, Command, run
from msgspec.structs import replace

from iis_finetune import launch, machine, preflight, runs
from iis_finetune.arguments import check, frozen, frozen_table, table
from iis_finetune.hook import iis_training_hook
from iis_finetune.plan import after
from iis_finetune.recipe import read
from iis_finetune.runs import Workspace
from iis_finetune.wheels import write_record

MINE = Path(sys.prefix).parent / ".venv-ppo"
TABLE = frozen_table("ppo")
SFT = RECIPE[RECIPE.index("model_name_or_path") :].replace("max_steps: 4", "max_steps: 8")
SFT = SFT.replace("save_steps: 2", "save_steps: 8")
ON_SFT = SFT.replace("model_name_or_path: models/tiny\n", "kit: {base: sft}\ncreate_new_adapter: true\n")
REWARD = ON_SFT.replace("stage: sft", "stage: rm").replace("little", "pairs")
PPO = (
    ON_SFT.replace("{base: sft}", "{base: sft, reward: reward}").replace("stage: sft", "stage: ppo")
    + "max_new_tokens: 16\ntop_k: 0\ntop_p: 1.0\ngradient_accumulation_steps: 2\n"
)


@pytest.fixture
def chain(project: Path) -> Path:
    """A project with an SFT recipe, a reward model on its result, and PPO on both."""
    for name, text in {"sft": SFT, "reward": REWARD, "ppo": PPO}.items():
        (project / "recipes" / f"{name}.yaml").write_text(text)
    pairs = [
        {"instruction": f"say {n}", "input": "", "chosen": f"it is {n * 7}", "rejected": "no no no"} for n in range(64)
    ]
    (project / "data" / "pairs.json").write_text(json.dumps(pairs))
    registry = json.loads((project / "data" / "dataset_info.json").read_text())
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    registry["pairs"] = {"file_name": "pairs.json", "ranking": True, "columns": columns}
    (project / "data" / "dataset_info.json").write_text(json.dumps(registry))
    return project


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """What a finished `make setup-ppo` leaves, as far as check and plan look at it."""
    folder = tmp_path / "other environment"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "llamafactory-cli").touch()
    (folder / "lib" / "python3.11" / "site-packages" / "matplotlib-3.11.2.dist-info").mkdir(parents=True)
    write_record(folder, {"torch": "2.13.0"})
    return folder


# ---- the environment, and what is said without it


def test_without_its_environment_the_command_that_makes_it_is_named_and_the_simpler_way(
    iis: Command, chain: Path
) -> None:
    for verb in ("check", "plan", "train"):
        done = iis(verb, "ppo", IIS_PPO=str(chain / "none"))
        assert done.returncode == 3, done.stdout + done.stderr
        assert "make setup-ppo" in done.stderr and "dpo" in done.stderr
    assert not (chain / "runs").exists()
    found = json.loads(iis("check", "ppo", "--json", IIS_PPO=str(chain / "none")).stdout)["problems"]
    assert [(each["kind"], each["key"]) for each in found if each["severity"] == "error"] == [("missing", "stage")]
    assert iis("check", "ppo", "--on", "mi50", IIS_PPO=str(chain / "none")).returncode == 0, "not this machine's matter"


def test_the_plan_names_the_other_environment_and_only_for_ppo(iis: Command, chain: Path, stand_in: Path) -> None:
    done = iis("plan", "ppo", "--json", IIS_PPO=str(stand_in))
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(done.stdout)
    assert made["command"] == ["llamafactory-cli", "train", "arguments.yaml"]
    assert (made["environment"]["VIRTUAL_ENV"], made["environment"]["IIS_STAGE"]) == ("{ppo}", "ppo")
    assert made["environment"]["PYTHONPATH"].startswith("{kit}/hook")
    assert made["arguments"]["reward_model_type"] == "lora" and made["arguments"]["create_new_adapter"] is True
    assert set(made["arguments"]) <= set(TABLE), "the kit's own additions are known there too"
    decisions = {each["name"]: each["value"] for each in made["decisions"]}
    assert (decisions["base"], decisions["reward"]) == ("sft", "reward")
    other = json.loads(iis("plan", "reward", "--json", IIS_PPO=str(stand_in)).stdout)
    assert not {"VIRTUAL_ENV", "IIS_STAGE"} & set(other["environment"])


def test_the_training_alone_finds_the_other_environments_programs_first(chain: Path, stand_in: Path) -> None:
    workspace = Workspace(chain, chain / "models", chain / "runs", stand_in)
    made = runs.create(workspace, "ppo", False)
    chosen = runs.fill({"VIRTUAL_ENV": "{ppo}", "IIS_STAGE": "ppo"}, made, workspace)
    environment = launch.child_environment(machine.profile("cpu"), {"PATH": "/usr/bin"}, chosen)
    assert environment["PATH"] == f"{stand_in}/bin:/usr/bin"
    assert after.one_process(environment) == {"PATH": "/usr/bin", "PYTHONPATH": ""}
    plain = launch.child_environment(machine.profile("cpu"), {"PATH": "/usr/bin", "VIRTUAL_ENV": "/mine"}, {})
    assert plain["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"


def test_set_up_installs_torch_for_the_same_card_and_the_other_pins(tmp_path: Path) -> None:
    made = setup_plan.make_plan(setup_plan.Request("rocm"), machine.profile("mi50x2"), purpose=setup_plan.PPO)
    assert made.pins() == ["torch==2.9.1+rocm6.3"] and made.extras == ()
    assert made.inputs_sha256 != setup_plan.inputs_sha256(ROOT)
    lines = (ROOT / "constraints-ppo.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name: pins[name] for name in ("llamafactory", "transformers")} == frozen("arguments", "ppo")["versions"]
    assert (pins["trl"], pins["peft"]) == ("0.9.6", "0.15.2") and "torch" not in pins
    assert made.purpose.constraints == "constraints-ppo.txt" and made.purpose.packages == ("llamafactory",)


# ---- its arguments


def test_arguments_are_held_to_the_version_that_runs_them(chain: Path) -> None:
    assert table("ppo", chain / "none") == TABLE
    assert {"use_dft_loss", "fp8", "oft_rank"} & set(TABLE) == set() and "save_safetensors" in TABLE
    words = ["use_dft_loss=true", "finetuning_type=oft", "report_to=trackio", "ppo_epochs=2", "lora_rnak=8"]
    recipe, _ = read("ppo", words, chain / "recipes")
    values, problems = check(recipe.entries.values(), TABLE)
    said = {problem.where.key: problem.what + problem.fix for problem in problems}
    assert set(said) == {"use_dft_loss", "finetuning_type", "report_to", "lora_rnak"}
    assert "0.9.3" in said["use_dft_loss"] and "lora_rank" in said["lora_rnak"]
    assert values["ppo_epochs"] == 2


REFUSED = {
    "two reward models": ({"reward_model": "models/tiny"}, {}, "name two reward models"),
    "a recipe of another stage": ({"kit.reward": "tiny"}, {}, "which gives no reward"),
    "no such recipe": ({"kit.reward": "rewrad"}, {}, "no recipe 'rewrad'"),
    "other weights": ({}, {"create_new_adapter: true\n": ""}, "with the adapter of 'sft' merged"),
    "a folder that is none": (
        {"kit.reward": "null", "reward_model": "nowhere"},
        {},
        "is no folder with adapter_config",
    ),
    "no reward at all": ({"kit.reward": "null"}, {}, "none is given"),
}


@pytest.mark.parametrize(("overrides", "edit", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_a_reward_model_that_cannot_score_this_training_is_refused(
    overrides: dict[str, str],
    edit: dict[str, str],
    says: str,
    chain: Path,
    stand_in: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(chain)
    file = chain / "recipes" / "reward.yaml"
    for old, new in edit.items():
        file.write_text(file.read_text().replace(old, new))
    workspace = Workspace(chain, chain / "models", chain / "runs", stand_in)
    words = tuple(f"{key}={value}" for key, value in overrides.items())
    question = preflight.Question("ppo", (), workspace, {})
    assert edit != {} or not [each for each in preflight.examine(question).problems if each.severity == "error"]
    found = preflight.examine(replace(question, overrides=words)).problems
    assert [each for each in found if says in each.what and each.severity == "error"], [each.what for each in found]


# ---- its hook

VERSION_4 = {
    "a plain one": ({"dtype": "bfloat16", "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
                    {"torch_dtype": "bfloat16", "rope_theta": 1e6}),
    "a stretched one": ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}},
                        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    "one of transformers 4": ({"torch_dtype": "float16", "rope_theta": 5e5},
                              {"torch_dtype": "float16", "rope_theta": 5e5}),
}  # fmt: skip


@pytest.fixture
def ppo_hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "iis_finetune" / "hook")
    import iis_ppo_hook  # type: ignore[import-not-found]

    return iis_ppo_hook


@pytest.mark.parametrize(("written", "read_as"), VERSION_4.values(), ids=VERSION_4.keys())
def test_a_config_of_transformers_5_is_read_for_what_it_means(
    written: dict[str, Any], read_as: dict[str, Any], ppo_hook: Any
) -> None:
    assert ppo_hook.as_version_4(written) == read_as


def test_a_config_that_transformers_4_cannot_express_ends_the_training(ppo_hook: Any) -> None:
    with pytest.raises(SystemExit, match="cannot read it"):
        ppo_hook.as_version_4({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}})


def test_autocast_is_another_precision_than_fp32() -> None:
    loaded = {"parameters": {"trainable": {"float32": 1}, "frozen": {}}, "mixed_precision": "no", "quantization": None}
    iis_training_hook.refuse_another_precision({**loaded, "distributed": "no", "autocast": None}, "fp32")
    with pytest.raises(SystemExit, match="under autocast in bfloat16"):
        iis_training_hook.refuse_another_precision({**loaded, "distributed": "no", "autocast": "bfloat16"}, "fp32")


# ---- the real thing


@pytest.fixture(scope="session")
def built() -> Path:
    """The second environment, made by `make setup-ppo` or found made: 2 GB, two minutes, the network."""
    done = subprocess.run(["make", "setup-ppo"], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / ".venv-ppo"


def tensors(folder: Path) -> dict[str, list[float]]:
    """Every tensor of an adapter, read in a child: the tests import no torch."""
    code = (
        "import sys, json; from safetensors.numpy import load_file\n"
        "print(json.dumps({k: v.ravel().tolist() for k, v in load_file(sys.argv[1]).items()}))"
    )
    file = str(folder / "adapter_model.safetensors")
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


@pytest.mark.extended
def test_reward_model_and_ppo_are_trained_for_real_from_one_command(chain: Path, built: Path) -> None:
    done = run(["train", "ppo"], chain, timeout=1800, IIS_PPO=str(built))
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = {each.recipe_name: each for each in runs.listed(Workspace(chain, chain / "models", chain / "runs"))}
    assert list(made) == ["sft", "reward", "ppo"] and {runs.state(each) for each in made.values()} == {"finished"}

    ppo = made["ppo"]
    lines = [json.loads(line) for line in ppo.trainer_log.read_text().splitlines()]
    told = [(line["loss"], line["reward"]) for line in lines if "reward" in line]
    print("loss and reward of each step:", told)
    assert len(told) == 8 and all(math.isfinite(number) for pair in told for number in pair)
    assert len({reward for _, reward in told}) > 1, "a reward that never moves scores nothing"

    loaded = json.loads(ppo.loaded.read_text())
    assert loaded["transformers"] == "4.52.4" and loaded["autocast"] is None
    assert set(loaded["parameters"]["frozen"]) == set(loaded["parameters"]["trainable"]) == {"float32"}
    packages = {name: json.loads(made[name].provenance.read_text())["packages"] for name in ("reward", "ppo")}
    assert (packages["reward"]["llamafactory"], packages["ppo"]["llamafactory"]) == ("0.9.5", "0.9.3")

    adapter = tensors(ppo.output)
    assert adapter and all(math.isfinite(value) for values in adapter.values() for value in values)
    # LoRA begins with B at zero: whatever is in it was learned here.
    assert any(value for name, values in adapter.items() if "lora_B" in name for value in values)
    assert run(["export", "last"], chain, timeout=600).returncode == 0, "merged and compared with the first environment"


@pytest.mark.extended
def test_bf16_and_a_stop_hold_in_the_other_training_loop_too(chain: Path, built: Path) -> None:
    done = run(["train", "ppo", "kit.precision=bf16", "max_steps=2"], chain, timeout=1800, IIS_PPO=str(built))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ppo = runs.listed(Workspace(chain, chain / "models", chain / "runs"))[-1]
    loaded = json.loads(ppo.loaded.read_text())
    assert (loaded["mixed_precision"], loaded["autocast"]) == ("bf16", "bfloat16")
    assert max(loaded["parameters"]["frozen"], key=loaded["parameters"]["frozen"].get) == "bfloat16"
