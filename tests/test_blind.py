"""People's choice: a page that needs no server and names nobody, and what the votes on it say."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import browser
import pytest
from conftest import Command

from iis_finetune.errors import Misused
from iis_finetune.report import blind
from iis_finetune.runs import Run

ROWS = 20


def write_answers(run: Run, base: str = "base", rows: int = ROWS) -> None:
    folder = run.evaluation / "held_out"
    folder.mkdir(parents=True, exist_ok=True)
    for name, word in ((base, "plain"), ("tuned", "good")):
        lines = [
            {"prompt": f"user\n问题 {n} <b>?", "predict": f"{word} {n} </script><i>", "label": "x"} for n in range(rows)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "0007-secretrun")
    write_answers(made)
    return made


def given(run: Run) -> Any:
    return blind.pairs(run, "held_out", "base")


def voting(run: Run, choose: list[str], name: str = "votes") -> Path:
    """A file as the page saves it, by what was preferred on each row."""
    rows = given(run)
    place = {"tuned": lambda row: row["tuned"], "other": lambda row: 1 - row["tuned"]}
    votes = {
        str(row["row"]): place[word](row) if word in place else word for row, word in zip(rows, choose, strict=False)
    }
    file = run.folder / f"{name}.json"
    file.write_text(json.dumps({"page": blind._mark(rows), "voter": name, "votes": votes}), encoding="utf-8")
    return file


def test_fifteen_of_twenty_give_the_interval_of_the_textbook(run: Run) -> None:
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    found = blind.count([voting(run, ["tuned"] * 15 + ["other"] * 5)], run, "held_out", "base")
    wanted = binomtest(15, 20).proportion_ci(method="wilson")
    assert (found["share"], found["verdict"], found["kappa"]) == (0.75, "better", None)
    assert [found["low"], found["high"]] == pytest.approx([wanted.low, wanted.high], abs=1e-6)
    assert "75% for tuned (53% to 89%, 95 %): better; 20 rows, 1 voters" in found["told"]
    assert json.loads((run.evaluation / "held_out" / "votes.json").read_text()) == {
        **found,
        "rows": {str(row): told for row, told in found["rows"].items()},
    }


@pytest.mark.parametrize(
    ("votes", "share", "verdict"),
    [
        (["equal"] * 20, 0.5, "cannot tell"),
        (["tuned"] * 9, 1.0, "cannot tell"),  # too few rows
        (["other"] * 16 + ["skip"] * 4, 0.0, "worse"),
        (["tuned"] * 10 + ["equal"] * 10, 0.75, "better"),
    ],
)
def test_an_equal_vote_is_a_half_and_a_skipped_one_is_none(
    run: Run, votes: list[str], share: float, verdict: str
) -> None:
    found = blind.count([voting(run, votes)], run, "held_out", "base")
    assert (found["share"], found["verdict"]) == (share, verdict)
    assert len(found["rows"]) == sum(word != "skip" for word in votes)


def test_two_people_agree_as_scikit_learn_counts_it(run: Run) -> None:
    from sklearn.metrics import cohen_kappa_score

    one = ["tuned"] * 12 + ["other"] * 4 + ["equal"] * 3 + ["skip"]
    two = ["tuned"] * 9 + ["other"] * 6 + ["equal"] * 4 + ["tuned"]
    found = blind.count([voting(run, one, "one"), voting(run, two, "two")], run, "held_out", "base")
    assert found["kappa"] == pytest.approx(cohen_kappa_score(one[:19], two[:19]))
    assert found["rows"][1] == "2 of 2" and found["rows"][20] == "1 of 1" and "2 voters" in found["told"]


def test_votes_on_other_answers_are_refused(run: Run) -> None:
    file = voting(run, ["tuned"] * 20)
    answers = run.evaluation / "held_out" / "tuned.jsonl"
    answers.write_text(answers.read_text(encoding="utf-8").replace("good", "better"), encoding="utf-8")
    with pytest.raises(Misused, match="no votes on these answers"):
        blind.count([file], run, "held_out", "base")
    file.write_text("[]")
    with pytest.raises(Misused, match="no votes on these answers"):
        blind.count([file], run, "held_out", "base")
    with pytest.raises(Misused, match="nobody has voted"):
        blind.count([voting(run, ["skip"] * 20)], run, "held_out", "base")


def test_the_votes_of_one_person_count_once(run: Run) -> None:
    file = voting(run, ["tuned"] * 20, "ann")
    copied = file.with_name("again.json")
    copied.write_bytes(file.read_bytes())
    for both in ([file, file], [file, copied]):
        with pytest.raises(Misused, match="are the same votes"):
            blind.count(both, run, "held_out", "base")
    assert blind.count([file, voting(run, ["tuned"] * 20, "li")], run, "held_out", "base")["share"] == 1.0
    with pytest.raises(Misused, match="there is no file"):
        blind.count([file.with_name("nobody.json")], run, "held_out", "base")


def test_rows_answered_alike_are_not_asked_about_and_the_order_is_mixed(run: Run) -> None:
    places = [row["tuned"] for row in given(run)]
    assert 4 < sum(places) < 16 and given(run) == given(run)
    answers = run.evaluation / "held_out" / "base.jsonl"
    answers.write_text(answers.read_text(encoding="utf-8").replace("plain 3 ", "good 3 "), encoding="utf-8")
    assert [row["row"] for row in given(run)] == [n for n in range(1, 21) if n != 4]


def test_a_page_and_the_votes_on_it_from_the_command_line(quick: Command, project: Path) -> None:
    run, other = (Run(project / "runs" / name) for name in ("0002-secretrun", "0001-rival"))
    for each in (run, other):
        each.output.mkdir(parents=True)
    write_answers(run)
    write_answers(run, other.name)
    done = quick("report", "2", "--blind", "--data", "held_out")
    assert done.returncode == 0 and (run.folder / "blind.html").is_file(), done.stderr
    assert "iis-finetune evaluate 0002 --data held_out --votes FILE..." in done.stdout
    done = quick("report", "2", "1", "--blind", "--data", "held_out")
    assert done.returncode == 0 and (project / "runs" / "blind-0002-0001.html").is_file(), done.stderr
    assert "--baseline 0001 --votes" in done.stdout
    missing = quick("report", "2", "--blind", "--data", "elsewhere")
    assert missing.returncode == 2 and "iis-finetune evaluate 0002 --data elsewhere" in missing.stderr


VOTES = "20112002s01201111221"


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium here: scripts/install_debian_packages.sh adds it")
@pytest.mark.parametrize("width", [1280, 390])
def test_twenty_votes_by_keyboard_survive_a_reload_and_are_read(run: Run, width: int, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(blind.ballot(run, "held_out", "base"), encoding="utf-8")
    with browser.Page(file) as page:
        page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.open(width, "light")
        whole = page.run("document.documentElement.outerHTML").lower()
        assert not [name for name in ("base", "tuned", "secretrun", "0007", "iis-finetune") if name in whole]
        assert page.run("document.documentElement.scrollWidth") <= width
        page.picture(tmp_path / "page.png")
        shown = []
        for key in VOTES:
            shown.append([page.run(f"document.getElementById('{name}').textContent") for name in ("first", "second")])
            press(page, key)
            if len(shown) == 7:
                page.open(width, "dark")
                assert page.run("document.getElementById('progress').textContent") == "7 / 20"
        assert page.run("document.getElementById('done').hidden") is False
        press(page, "Backspace")
        press(page, "s")
        page.run("document.getElementById('save').click()")
        saved = wait_for(tmp_path)
        assert page.console == []
        assert [address for address in page.requests if not address.startswith(("file:", "data:", "blob:"))] == []
    found = blind.count([saved], run, "held_out", "base")
    worth = {"1": 0, "2": 1}
    preferred = [shown[at][worth[key]].startswith("good") if key in worth else key for at, key in enumerate(VOTES[:19])]
    told = {True: "1 of 1", False: "0 of 1", "0": "0.5 of 1"}
    assert found["rows"] == {at: told[vote] for at, vote in enumerate(preferred, 1) if vote != "s"}


def press(page: browser.Page, key: str) -> None:
    page.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
    page.send("Input.dispatchKeyEvent", type="keyUp", key=key)


def wait_for(folder: Path) -> Path:
    until = time.monotonic() + 30
    while not (found := list(folder.glob("votes-*.json"))) and time.monotonic() < until:
        time.sleep(0.1)
    return found[0]
