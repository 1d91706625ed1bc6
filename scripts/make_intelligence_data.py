#!/usr/bin/env python3
"""Make the data sets: news items in, a dropped id or a structured record out; the same for each stage of training.

    python scripts/make_intelligence_data.py            writes data/
    python scripts/make_intelligence_data.py --check    exit 1 when data/ differs from a fresh generation

Half of the items are worthless on purpose (adverts, gossip, small talk about the weather, horoscopes, lotteries, chain
letters) and are answered with `{"UUID": ...}` alone. The others are answered with a record:

| field       | how the text decides it                                     | score that suits it        |
|-------------|-------------------------------------------------------------|----------------------------|
| UUID        | stands in the first line                                    | exact                      |
| title       | company, place and thing, put together                      | exact                      |
| brief       | the same with the figure                                    | overlap (ROUGE-L)          |
| category    | the kind of event                                           | exact (one of six)         |
| importance  | how far the sentence on the consequences reaches            | exact (1 to 5)             |
| credibility | the kind of source                                          | exact (1 to 5)             |

The other stages see items of their own: pairs of a right and a wrong answer (reward models, DPO), single answers that
are marked right or wrong (KTO), conversations of two items (ShareGPT, ChatML), plain text (pre-training). A wrong
answer decides wrongly, is no JSON, or rates wrongly.

Ids are three words (`rose-otter-grass`), each a single token: a model of two million parameters learns to copy these,
but neither eight random digits nor the 32 of a real UUID: that figure would be 0 and say nothing.
Every place, company and source is invented. Nothing of a test item (id, text, title) stands in the other files, and no
item in two of them.
Only `random.Random` and the standard library are used, so the bytes are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20240607
TRAIN_ROWS, TEST_ROWS, PAGES = 600, 100, 2400
PAIRS, MARKED, CONVERSATIONS = 160, 80, 60
DATA = Path(__file__).resolve().parent.parent / "data"
INSTRUCTION = (
    "判断这条新闻的价值。Judge this news item: worthless, answer with its UUID alone; otherwise with its record."
)

PLACES = {
    "zh": ["澜石城", "霜桥镇", "枫砚市", "银杉港", "赤榆市", "碧梧州", "鹤屿县", "松塬市", "沉星湾", "雁檀城"],
    "en": [
        "Varnholm",
        "Ombrafield",
        "Dunmarsh",
        "Calderport",
        "Highfen",
        "Tarnwick",
        "Lowmere",
        "Askrath",
        "Kestrelby",
        "Pellgate",
    ],
}
COMPANIES = {
    "zh": [
        "蓝穗公司",
        "恒砾集团",
        "晨渡公司",
        "远汀集团",
        "禾汐公司",
        "铁棠集团",
        "云梭公司",
        "明槿集团",
        "砚川公司",
        "榆晖集团",
    ],
    "en": [
        "Northlark",
        "Brindle",
        "Quillon",
        "Oakvane",
        "Fernhollow",
        "Tessaly",
        "Marrowby",
        "Silverwen",
        "Drayloft",
        "Umberlin",
    ],
}
# The kind of source decides the credibility.
SOURCES = {
    "zh": {"{p}政府公报": 5, "{p}日报": 4, "{p}电台": 3, "{p}论坛": 2, "匿名短信": 1},
    "en": {"{p} Gazette": 5, "{p} Daily": 4, "{p} Radio": 3, "{p} Forum": 2, "Anonymous note": 1},
}
# How far the consequences reach decides the importance.
CONSEQUENCES = {
    "zh": {
        "影响仅限本单位。": 1,
        "影响限于当地。": 2,
        "邻近地区也受影响。": 3,
        "全国都受影响。": 4,
        "多个国家受影响。": 5,
    },
    "en": {
        "Only the site itself is affected.": 1,
        "The effect stays local.": 2,
        "Neighbouring regions are affected too.": 3,
        "The whole country is affected.": 4,
        "Several countries are affected.": 5,
    },
}


@dataclass(frozen=True)
class Event:
    """A kind of news worth keeping; `{c}` company, `{p}` place, `{x}` thing, `{n}` number."""

    category: str
    language: str
    things: tuple[str, ...]
    texts: tuple[str, str]
    title: str
    brief: str


EVENTS = (
    Event(
        "energy",
        "zh",
        ("电池厂", "炼油厂", "储氢站"),
        ("{c}在{p}的{x}今天投产，年产{n}万吨。", "{p}消息，{c}宣布{x}正式投产，每年可产{n}万吨。"),
        "{c}{x}在{p}投产",
        "{c}{x}在{p}投产，年产{n}万吨。",
    ),
    Event(
        "energy",
        "en",
        ("battery plant", "refinery", "hydrogen depot"),
        (
            "{c} has started its {x} in {p}, good for {n} kilotons a year.",
            "In {p} the {x} of {c} went into service; it makes {n} kilotons a year.",
        ),
        "{c} starts {x} in {p}",
        "{c} starts {x} in {p}, {n} kilotons a year.",
    ),
    Event(
        "trade",
        "zh",
        ("港口", "铁路", "机场"),
        ("{p}{x}工人罢工，{c}的{n}批货物滞留。", "因罢工，{c}有{n}批货物被困在{p}{x}。"),
        "{p}{x}罢工，{c}货物滞留",
        "{p}{x}罢工，{c}有{n}批货物滞留。",
    ),
    Event(
        "trade",
        "en",
        ("port", "railway", "airport"),
        (
            "Workers at the {x} of {p} are on strike; {n} loads of {c} are stuck.",
            "A strike at the {p} {x} holds up {n} loads that {c} had sent.",
        ),
        "Strike at {p} {x} holds up {c}",
        "Strike at {p} {x} holds up {n} loads of {c}.",
    ),
    Event(
        "technology",
        "zh",
        ("芯片", "卫星", "机器人"),
        ("{c}在{p}发布新型{x}，成本降低{n}%。", "新型{x}在{p}亮相，{c}称成本下降{n}%。"),
        "{c}在{p}发布新型{x}",
        "{c}在{p}发布新型{x}，成本降低{n}%。",
    ),
    Event(
        "technology",
        "en",
        ("chip", "satellite", "robot"),
        ("{c} showed a new {x} in {p} that costs {n}% less.", "A new {x}, {n}% cheaper, was shown in {p} by {c}."),
        "{c} shows new {x} in {p}",
        "{c} shows new {x} in {p}, {n}% cheaper.",
    ),
    Event(
        "security",
        "zh",
        ("数据库", "邮件系统", "控制系统"),
        ("{c}{p}分部的{x}遭黑客入侵，{n}台主机停用。", "黑客攻入{c}设在{p}的{x}，{n}台主机被迫停用。"),
        "{c}{p}{x}遭入侵",
        "{c}{p}{x}遭入侵，{n}台主机停用。",
    ),
    Event(
        "security",
        "en",
        ("database", "mail system", "control system"),
        (
            "Intruders broke into the {x} of {c} in {p}; {n} servers are down.",
            "In {p} the {x} of {c} was broken into and {n} servers were switched off.",
        ),
        "{c} {x} in {p} broken into",
        "{c} {x} in {p} broken into, {n} servers down.",
    ),
    Event(
        "health",
        "zh",
        ("疫苗", "胶囊", "奶粉"),
        ("{p}查出不合格{x}，{c}召回{n}箱。", "{c}从{p}召回{n}箱{x}，原因是检验不合格。"),
        "{c}从{p}召回{x}",
        "{c}从{p}召回{x}{n}箱。",
    ),
    Event(
        "health",
        "en",
        ("vaccine", "capsules", "baby food"),
        (
            "Tests in {p} failed, so {c} calls back {n} crates of {x}.",
            "{c} calls back {n} crates of {x} from {p} after failed tests.",
        ),
        "{c} calls back {x} from {p}",
        "{c} calls back {x} from {p}, {n} crates.",
    ),
    Event(
        "policy",
        "zh",
        ("补贴", "关税", "环保规定"),
        ("{p}议会通过新的{x}，{c}等{n}家企业须执行。", "新的{x}在{p}获得通过，涉及{c}等{n}家企业。"),
        "{p}通过新{x}，涉及{c}",
        "{p}通过新{x}，涉及{c}等{n}家企业。",
    ),
    Event(
        "policy",
        "en",
        ("subsidy", "tariff", "emission rule"),
        (
            "The council of {p} passed a new {x} that binds {c} and {n} other firms.",
            "A new {x} was passed in {p}; {c} and {n} other firms must follow it.",
        ),
        "{p} passes new {x} for {c}",
        "{p} passes new {x} for {c} and {n} other firms.",
    ),
)

# Worthless: the same companies, places and sources occur, so that none of them gives the decision away.
WORTHLESS = {
    "zh": (
        "{c}{p}门店周年大促，{x}低至{n}元，先到先得！",
        "限时优惠！{p}的朋友快来{c}买{x}，立减{n}元。",
        "听说{c}老板在{p}和{x}店主吃了{n}次饭，网友都在猜。",
        "有人在{p}看见{c}的明星代言人偷偷买{n}个{x}，粉丝炸锅。",
        "{p}今天{n}度，阳光不错，路过{c}大楼，买个{x}散散步。",
        "{p}又下雨了，{n}度，{c}门口的{x}都湿了，记得带伞。",
        "今日运势：{p}的朋友幸运数字{n}，幸运物{x}，贵人在{c}。",
        "{p}彩票开奖，幸运号{n}，二等奖是{c}送的{x}。",
        "转发这条消息给{n}个好友，{c}就送你{x}，{p}已有人领到！",
    ),
    "en": (
        "Big anniversary sale at the {c} shop in {p}: {x} from {n} coins, come early!",
        "Today only! Friends in {p}, buy your {x} at {c} and save {n} coins.",
        "They say the boss of {c} had dinner {n} times in {p} with the owner of a {x} shop.",
        "Fans go wild: the star from the {c} advert was seen in {p} buying {n} pieces of {x}.",
        "Nice and sunny in {p}, {n} degrees; walked past the {c} tower with a {x}.",
        "Rain again in {p}, {n} degrees, and the {x} outside {c} got wet. Take an umbrella.",
        "Your stars today: in {p} the lucky number is {n}, the lucky thing a {x}, your friend works at {c}.",
        "Lottery in {p}: the lucky number is {n}, the second prize is a {x} given by {c}.",
        "Send this to {n} friends and {c} gives you a {x}; people in {p} already got one!",
    ),
}
TRIFLES = {
    "zh": ("奶茶", "雨伞", "蛋糕", "拖鞋", "气球", "围巾"),
    "en": ("teapot", "scarf", "cake", "balloon", "pillow", "candle"),
}
ID_WORDS = (
    "amber azure black blue brown coral cream gold green grey "
    "indigo ivory lilac olive orange pink plum red rose silver",
    "bear crane deer eagle finch fox goose hare heron lark lion lynx mole otter owl raven seal swan tiger wolf",
    "ash beech birch cedar clover elm fern fir grass hazel ivy larch lily maple moss oak pine reed thorn willow",
)
LABELS = {"zh": ("来源：", "。"), "en": ("Source: ", ". ")}


@dataclass(frozen=True)
class Item:
    """One news item and what is to be answered; `record` is None when it is worthless."""

    uuid: str
    language: str
    source: str
    text: str
    record: dict[str, str | int] | None

    @property
    def prompt(self) -> str:
        return f'UUID: "{self.uuid}"\n{LABELS[self.language][0]}{self.source}\n{self.text}'

    @property
    def answer(self) -> str:
        return json.dumps({"UUID": self.uuid, **(self.record or {})}, ensure_ascii=False)


def new_item(random_source: random.Random, keep: bool) -> Item:
    choice = random_source.choice
    language = choice(["zh", "en"])
    event = choice([event for event in EVENTS if event.language == language])
    values = {
        "c": choice(COMPANIES[language]),
        "p": choice(PLACES[language]),
        "n": str(random_source.randrange(11, 40)),
    }
    values["x"] = choice(event.things if keep else TRIFLES[language])
    source, credibility = choice(list(SOURCES[language].items()))
    consequence, importance = choice(list(CONSEQUENCES[language].items()))
    uuid = "-".join(choice(words.split()) for words in ID_WORDS)
    place = choice(PLACES[language])
    if not keep:
        text = choice(WORTHLESS[language]).format(**values)
        return Item(uuid, language, source.format(p=place), text, None)
    record: dict[str, str | int] = {
        "title": event.title.format(**values),
        "brief": event.brief.format(**values),
        "category": event.category,
        "importance": importance,
        "credibility": credibility,
    }
    gap = "" if language == "zh" else " "
    text = choice(event.texts).format(**values) + gap + consequence
    return Item(uuid, language, source.format(p=place), text, record)


def new_items(random_source: random.Random, count: int, seen: set[str]) -> list[Item]:
    """`count` items, every second one worth keeping; no id, text or title that is in `seen`, which grows."""
    items: list[Item] = []
    while len(items) < count:
        item = new_item(random_source, keep=len(items) % 2 == 0)
        marks = {item.uuid, item.text, str((item.record or {}).get("title", item.text))}
        if marks & seen:
            continue
        seen |= marks
        items.append(item)
    random_source.shuffle(items)
    return items


def alpaca_row(item: Item) -> dict[str, str]:
    return {"instruction": INSTRUCTION, "input": item.prompt, "output": item.answer}


def plain_row(item: Item) -> dict[str, str]:
    """The item and its card in the archive: repeating id, names and ratings is what teaches a small model to copy."""
    card = {"UUID": f'"{item.uuid}"', **(item.record or {})}
    return {"text": "\n".join([item.prompt, *(f"{name}: {value}" for name, value in card.items())])}


def wrong_answer(random_source: random.Random, item: Item, others: Sequence[Item]) -> str:
    """An answer that decides wrongly (with the record of another item), is no JSON, or rates wrongly."""
    fault = random_source.choice(["decision", "form", "rating"] if item.record else ["decision", "form"])
    if fault == "form":
        broken = (item.answer[:-1], item.answer.replace('"', ""), item.answer.partition(": ")[2])
        return random_source.choice(broken)
    if fault == "rating" and item.record:
        field = random_source.choice(["importance", "credibility"])
        rating = random_source.choice([each for each in range(1, 6) if each != item.record[field]])
        return json.dumps({"UUID": item.uuid, **item.record, field: rating}, ensure_ascii=False)
    taken = {} if item.record else random_source.choice([each.record for each in others if each.record])
    return json.dumps({"UUID": item.uuid, **taken}, ensure_ascii=False)


def pair_row(item: Item, wrong: str) -> dict[str, str]:
    return {"instruction": INSTRUCTION, "input": item.prompt, "chosen": item.answer, "rejected": wrong}


def marked_row(item: Item, wrong: str | None) -> dict[str, Any]:
    answer, right = wrong or item.answer, wrong is None
    return {"instruction": INSTRUCTION, "input": item.prompt, "output": answer, "label": right}


def conversation(items: Sequence[Item], words: tuple[str, ...]) -> dict[str, Any]:
    """Items judged one after the other; `words`: list, role, content, and the names of system, user, assistant."""
    whole, role, content, system, user, assistant = words
    turns = [{role: system, content: INSTRUCTION}]
    for item in items:
        turns += [{role: user, content: item.prompt}, {role: assistant, content: item.answer}]
    return {whole: turns}


SHAREGPT = ("conversations", "from", "value", "system", "human", "gpt")
CHATML = ("messages", "role", "content", "system", "user", "assistant")


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row a line, so that a change shows in a diff."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def generated() -> dict[str, str]:
    """File name -> content, the test rows drawn first so that nothing of theirs can be drawn again."""
    random_source, seen = random.Random(SEED), set[str]()
    test = new_items(random_source, TEST_ROWS, seen)
    train = new_items(random_source, TRAIN_ROWS, seen)
    pages = new_items(random_source, PAGES, seen)
    pairs, marked = (new_items(random_source, count, seen) for count in (PAIRS, MARKED))
    talks = [new_items(random_source, 2 * CONVERSATIONS, seen) for _ in range(2)]
    two_and_two = [[items[n : n + 2] for n in range(0, len(items), 2)] for items in talks]
    return {
        "intelligence_test.json": as_json([alpaca_row(item) for item in test]),
        "intelligence_train.json": as_json([alpaca_row(item) for item in train]),
        "quickstart_text.json": as_json([plain_row(item) for item in pages]),
        "intelligence_pairs.json": as_json(
            [pair_row(each, wrong_answer(random_source, each, train)) for each in pairs]
        ),
        "intelligence_marked.json": as_json(
            [
                marked_row(each, wrong_answer(random_source, each, train) if number % 2 else None)
                for number, each in enumerate(marked)
            ]
        ),
        "intelligence_sharegpt.json": as_json([conversation(items, SHAREGPT) for items in two_and_two[0]]),
        "intelligence_chatml.json": as_json([conversation(items, CHATML) for items in two_and_two[1]]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="make the data sets in data/")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when a committed file differs")
    check = parser.parse_args().check
    different = []
    for name, content in generated().items():
        path = DATA / name
        if check:
            different += [] if path.is_file() and path.read_bytes() == content.encode() else [name]
        else:
            path.write_bytes(content.encode())
    for name in different:
        print(f"data/{name} differs from a fresh generation", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
