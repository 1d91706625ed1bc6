from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from iis_finetune import recipe as recipes
from iis_finetune.errors import COMMAND_LINE, ProblemsFound

GOOD = """\
kit:
  precision: fp32   # a reason
  from_scratch:
    vocabulary_size: 400
    hidden_size: 8
    intermediate_size: 8
    layers: 1
    attention_heads: 1
    key_value_heads: 1
    text: little
model_name_or_path: a/b
learning_rate: 2e-4
lora_rank: "8"
save_strategy: no
"""


def write(folder: Path, content: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_values_keep_their_lines_and_their_meaning(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe, problems = recipes.read(str(path))
    assert problems == []
    assert recipe.kit.precision == "fp32"
    assert recipe.kit.from_scratch is not None and recipe.kit.from_scratch.layers == 1
    assert recipe.value("learning_rate") == pytest.approx(2e-4) and isinstance(recipe.value("learning_rate"), float)
    assert recipe.value("lora_rank") == "8" and recipe.entries["lora_rank"].quoted
    assert recipe.value("save_strategy") is False
    assert (recipe.place("lora_rank").line, recipe.place("kit.precision").line) == (13, 2)
    assert type(recipe.value("model_name_or_path")) is str


BROKEN = {
    "a tab": ("a: 1\n\tb: 2\n", 2, "tab"),
    "a duplicate key": ("a: 1\nb: 2\na: 3\n", 3, "duplicate key"),
    "no YAML": ("a: [1, 2\nb: 3\n", None, "not YAML"),
    "an empty file": ("", 1, "empty"),
    "only a comment": ("# nothing\n", 1, "empty"),
    "a list": ("- a\n- b\n", 1, "key: value"),
    "a word": ("hello\n", 1, "key: value"),
    "a full-width colon": ("a: 1\nb： 2\nc: 3\n", 2, "a full-width '：'; type ':'"),
    "only full-width colons": ("a： 1\nb： 2\n", 1, "a full-width '：'; type ':'"),
    "no space behind a colon": ("a: 1\nb:2\nc: 3\n", 2, "a space behind the colon"),
    "a date that does not exist": ("a: 2024-13-45\n", None, None),
    "bytes that are no text": (b"\x80\x81\xfe\xff", None, "UTF-8"),
    "a binary file": (b"a: 1\0\0\0", None, "binary"),
    "a python tag": ("a: !!python/object/apply:os.system ['true']\n", None, None),
    "two documents": ("a: 1\n---\nb: 2\n", None, None),
}


@pytest.mark.parametrize(("content", "line", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_recipe_is_a_problem_with_its_line(
    tmp_path: Path, content: str | bytes, line: int | None, words: str | None
) -> None:
    path = write(tmp_path, content)
    try:
        recipe, _ = recipes.read(str(path))
    except ProblemsFound as found:
        problem = found.problems[0]
        assert found.exit_code == 2 and problem.fix
        assert problem.where.file == str(path)
        assert words is None or words in problem.what + problem.fix
        assert line is None or problem.where.line == line
    else:
        assert words is None, "should have been refused"
        assert all(isinstance(entry.value, str | int | list) for entry in recipe.entries.values())


OVERRIDES = {
    "lora_rank": "key=value",
    "--lora_rank=8": "write lora_rank=8",
    "lora_rank:8": "write lora_rank=8",
    "lora_rank：8": "write lora_rank=8: a full-width '：' is no '='",
    "lora_rank＝8": "write lora_rank=8: a full-width '＝' is no '='",
    "=8": "key=value",
    "learning_rate=": "learning_rate=null unsets it",
    "a=[1": "the value of a",
    "kit.precison=fp32": "did you mean 'kit.precision'",
    "kit.precision=fp33": "did you mean 'fp32'",
}


@pytest.mark.parametrize(("text", "words"), OVERRIDES.items())
def test_a_wrong_override_is_a_problem_of_the_command_line(tmp_path: Path, text: str, words: str) -> None:
    _, problems = recipes.read(str(write(tmp_path, GOOD)), [text])
    assert len(problems) == 1
    assert words in problems[0].what + problems[0].fix
    assert problems[0].where.file == COMMAND_LINE


def test_an_override_wins_and_is_read_as_yaml(tmp_path: Path) -> None:
    words = ["lora_rank=16", "kit.precision=bf16", "dataset=[a, b]", "kit.from_scratch=null", "max_steps=null"]
    recipe, problems = recipes.read(str(write(tmp_path, GOOD)), words)
    assert problems == []
    assert recipe.value("lora_rank") == 16 and recipe.entries["lora_rank"].source == "override"
    assert recipe.kit.precision == "bf16" and recipe.kit.from_scratch is None
    assert recipe.value("dataset") == ["a", "b"] and recipe.value("max_steps") is None


TESTED = "kit:\n  evaluate_after: news_test\ndataset: news\n"


def test_other_data_leave_the_recipes_held_out_rows_behind_and_say_so(tmp_path: Path) -> None:
    recipe, (said,) = recipes.read(str(write(tmp_path, TESTED)), ["dataset=mine"])
    assert recipe.kit.evaluate_after is None and not recipe.states("kit.evaluate_after")
    assert said.severity == "warning" and "'news_test' belong to 'news'" in said.what and said.where.line == 2
    assert "kit.evaluate_after=NAME" in said.fix and "val_size=0.1" in said.fix


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "news_test"),
        (["dataset=mine", "kit.evaluate_after=mine_test"], "mine_test"),
        (["dataset=mine", "kit.evaluate_after=news_test"], "news_test"),
        (["dataset=mine", "kit.evaluate_after=null"], None),
        (["dataset=mine", "val_size=0.1"], None),
        (["lora_rank=8"], "news_test"),
    ],
)
def test_held_out_rows_are_those_that_were_asked_for(tmp_path: Path, words: list[str], expected: str | None) -> None:
    recipe, problems = recipes.read(str(write(tmp_path, TESTED)), words)
    assert (recipe.kit.evaluate_after, problems) == (expected, [])


def test_several_wrong_kit_keys_are_reported_together_and_the_rest_is_kept(tmp_path: Path) -> None:
    text = "kit:\n  precison: fp32\n  launcher: ddpp\n  global_batch_size: 8\na: 1\n"
    recipe, problems = recipes.read(str(write(tmp_path, text)))
    assert sorted(problem.where.line or 0 for problem in problems) == [2, 3]
    assert recipe.kit.global_batch_size == 8


def test_a_recipe_is_found_by_name_by_path_and_never_guessed(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\n", "mine.yaml")
    assert recipes.find("mine", tmp_path) == path
    assert recipes.find(str(path), tmp_path / "elsewhere") == path
    for name, words in {"mime": "did you mean 'mine'", "zzz": "recipes here: mine", "x/y.yaml": "by name"}.items():
        with pytest.raises(ProblemsFound) as found:
            recipes.find(name, tmp_path)
        assert found.value.exit_code == 2
        assert words in found.value.problems[0].fix or "does not exist" in found.value.problems[0].what


def test_a_json_recipe_is_refused_because_llamafactory_cannot_read_it(tmp_path: Path) -> None:
    with pytest.raises(ProblemsFound, match="JSON"):
        recipes.read(str(write(tmp_path, "{}", "r.json")))


@pytest.mark.parametrize(
    ("name", "words"), [("a.py", "a script is not"), ("a.CSV", "data add FILE"), ("a.parquet", "data add FILE")]
)
def test_what_is_given_in_place_of_a_recipe_is_told_where_it_belongs(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ProblemsFound) as found:
        recipes.read(str(write(tmp_path, b"PAR1\xff", name)))
    assert words in found.value.problems[0].what + found.value.problems[0].fix


def test_devices_can_be_written_as_the_vendors_variables_have_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kit: {devices: [0, 1], description: '1,2', notify: '1,2'}\nstage: sft\n")
    for words in ((), ("kit.devices=0,1",)):
        recipe, problems = recipes.read(str(tmp_path / "a.yaml"), words)
        assert not problems and recipe.kit.devices == [0, 1]
        assert (recipe.kit.description, recipe.kit.notify) == ("1,2", "1,2")


MERGED = """\
kit: &usual
  precision: fp32
  env: {OMP_NUM_THREADS: 1}
<<: &small {lora_rank: 8, lora_alpha: 16}
lora_alpha: 32
"""


def test_merge_keys_are_ordinary_yaml_with_the_line_of_the_value_they_bring(tmp_path: Path) -> None:
    recipe, problems = recipes.read(str(write(tmp_path, MERGED)))
    assert problems == []
    assert (recipe.value("lora_rank"), recipe.value("lora_alpha")) == (8, 32)
    assert (recipe.place("lora_rank").line, recipe.place("lora_alpha").line) == (4, 5)
    text = "x: &x\n  precision: fp32\ny: &y {precision: bf16, attention: sdpa}\nkit:\n  <<: [*x, *y]\n"
    recipe, _ = recipes.read(str(write(tmp_path, text)))
    assert (recipe.kit.precision, recipe.kit.attention) == ("fp32", "sdpa")
    assert recipe.place("kit.precision").line == 2


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BEYOND = {
    "aliases that expand": (LAUGHS, "aliases counted"),
    "aliases that nest": ("k0: &k0 [1]\n" + "".join(f"k{n}: &k{n} [*k{n - 1}]\n" for n in range(1, 200)), "nested"),
    "a list of 200,000": ("a: [" + "x," * 200_000 + "]", "over 10000 values"),
    "brackets": ("a: " + "[" * 100_000, "nested over 50 deep"),
    "dashes": ("a:\n" + "- " * 100_000, "nested over 50 deep"),
    "too many keys": ("".join(f"k{n}: 1\n" for n in range(700)), "at most 600 keys"),
    "over 1 MB": ("# x\n" * 300_000, "over 1 MB"),
    "a mapping in itself": ("&r {kit: *r}", "holds itself"),
    "a list in itself": ("lora_target: &a [*a]", "holds itself"),
    "a surrogate": ('a: "\\ud800"', "D800"),
    "a NUL": ('"a\\0": 1', "0000"),
    "a merged number": ("<<: 3", "`<<` merges mappings"),
    "a duplicate within": ("kit:\n  env: {a: 1, a: 2}", "duplicate key"),
}


@pytest.mark.parametrize(("content", "words"), BEYOND.values(), ids=BEYOND.keys())
def test_what_goes_beyond_a_page_of_settings_is_refused_at_once(tmp_path: Path, content: str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(ProblemsFound, match=words):
        recipes.read(str(write(tmp_path, content)))
    assert time.process_time() - began < 5


OVER = {
    "self": ("&a [*a]", "holds itself"),
    "laughs": ("{" + LAUGHS.strip().replace("\n", ", ") + "}", "aliases counted"),
    "half": ('"\\ud800"', "D800"),
}


@pytest.mark.parametrize(("value", "words"), OVER.values(), ids=OVER.keys())
def test_an_override_is_held_to_the_same_bounds(tmp_path: Path, value: str, words: str) -> None:
    recipe, problems = recipes.read(str(write(tmp_path, "a: 1\n")), [f"lora_target={value}"])
    assert len(problems) == 1 and "the value of lora_target" in problems[0].what and words in problems[0].what
    assert not recipe.states("lora_target")


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "1" * 5000, "1:" * 3000 + "1", "0b" + "1" * 9000, "0x_"])
def test_a_number_that_no_argument_can_take_is_a_text(tmp_path: Path, number: str) -> None:
    assert recipes.read(str(write(tmp_path, f"lora_rank: {number}\n")))[0].value("lora_rank") == number


SECRETS = {
    "kit: {env: {HF_TOKEN: abc}}": "kit.env.HF_TOKEN",
    "kit: {env: {wandb_api_key: abc}}": "kit.env.wandb_api_key",
    "kit: {env: {MY_SECRET: 1, DB_PASSWORD: 2}}": "kit.env.MY_SECRET",
    f"kit: {{env: {{PLAIN: hf_{'a' * 20}}}}}": "kit.env.PLAIN",
    f"kit: {{notify: 'curl -H \"key: sk-{'a' * 20}\" x'}}": "kit.notify",
    "hf_hub_token: abc": "hf_hub_token",
    "ms_hub_token: abc": "ms_hub_token",
    "hub_token: abc": "hub_token",
    f"run_name: ms-{'1a-' * 8}": "run_name",
    f"init_kwargs: {{a: [sk-proj-{'a' * 20}]}}": "init_kwargs",
}
NO_SECRETS = """\
tokenized_path: x
add_tokens: <a>,<b>
skip_special_tokens: true
hf_hub_token: null
model_name_or_path: models/hf_abcdefghijklmnopqrstuvwxyz
run_name: hf_short
kit: {env: {TOKENIZERS_PARALLELISM: false, TOKENS: 1, KEYS: 2}}
"""


@pytest.mark.parametrize(("text", "key"), SECRETS.items())
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(tmp_path: Path, text: str, key: str) -> None:
    recipe, problems = recipes.read(str(write(tmp_path, text)))
    assert key in problems[0].what and problems[0].fix == "set it in the shell; it is passed on"
    told = repr(problems) + repr(recipe)
    assert not re.search("abc|aaaa|1a-1a", told.replace(f"'{key}'", ""))
    name, _, value = text.partition(": ")
    overridden, problems = recipes.read(str(write(tmp_path, "a: 1\n")), [f"{name}={value}"] if name != "kit" else [])
    assert not overridden.states(name) or name == "kit"


def test_what_only_sounds_like_a_secret_is_none(tmp_path: Path) -> None:
    assert recipes.read(str(write(tmp_path, NO_SECRETS)))[1] == []


@pytest.mark.parametrize("name", ["A=B", "''", "a b", "a-b", "1A"])
def test_a_name_that_no_variable_can_have_is_a_problem(tmp_path: Path, name: str) -> None:
    _, problems = recipes.read(str(write(tmp_path, f"kit:\n  env: {{{name}: 1}}\n")))
    assert len(problems) == 1 and "cannot be the name of a variable" in problems[0].what
    assert problems[0].where.line == 2
