#!/usr/bin/env python3
"""Make data/general_test.json: 200 short questions of everyday kinds, half Chinese, half English, with right answers.

    python scripts/make_general_data.py            writes the file
    python scripts/make_general_data.py --check    exit 1 when it differs from a fresh generation

It has nothing to do with any task that is trained here: what a tuned model loses on it, it has forgotten.
The written rows are sentences of this project's own; the computed ones (sums, orders, calendars, units) are right
because the program that asks them also works them out. No row names a year's news, a person alive or a brand, so none
of them grows old. Only `random.Random` and the standard library are used: the bytes are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

SEED = 20261121
ROWS_PER_LANGUAGE = 100
FILE = Path(__file__).resolve().parent.parent / "data" / "general_test.json"

# A question, a bar, its answer. Kinds: the world, nature, the body, words, translation, tone, advice, reasoning, code.
ENGLISH = """
What is the capital of Japan? | The capital of Japan is Tokyo.
Which is the largest ocean on Earth? | The Pacific Ocean is the largest ocean on Earth.
On which continent does the Nile flow? | The Nile flows in Africa.
Which country has the city of Lisbon as its capital? | Portugal.
Name the four compass directions. | North, east, south and west.
Why does a ship made of steel float? | Its hollow shape pushes aside water that weighs as much as the ship itself.
Why do we see lightning before we hear thunder? | Light travels far faster than sound.
At what temperature does water boil at sea level, in degrees Celsius? | At 100 degrees Celsius.
What do plants take from the air to make sugar? | Carbon dioxide.
Which planet is closest to the Sun? | Mercury.
How many legs does a spider have? | A spider has eight legs.
What does a caterpillar turn into? | A butterfly or a moth.
Is a whale a fish? | No. A whale is a mammal: it breathes air and feeds its young with milk.
Which gas do we need to breathe in to live? | Oxygen.
Why does ice float on water? | Ice is less dense than liquid water.
What causes day and night? | The Earth turns once around its own axis in about 24 hours.
Which metal is liquid at room temperature? | Mercury.
What is the hardest natural material? | Diamond.
What does the heart do? | It pumps blood through the body.
How many teeth does a grown-up usually have? | Thirty-two, wisdom teeth included.
Which organ do we think with? | The brain.
Which sense belongs to the ear? | Hearing.
What is the opposite of "generous"? | Stingy.
Give a word that means the same as "begin". | Start.
What is the plural of "mouse", the animal? | Mice.
What is the past tense of "to bring"? | Brought.
Complete the saying: "Many hands make ..." | Many hands make light work.
What does "once in a blue moon" mean? | Very rarely.
Turn this into a question: "She likes tea." | Does she like tea?
Put this into the passive: "The dog chased the cat." | The cat was chased by the dog.
Correct the mistake: "He don't know the answer." | He doesn't know the answer.
Which word does not belong: apple, pear, hammer, plum? | Hammer, because it is not a fruit.
Make one sentence of these two: "It rained. We stayed at home." | It rained, so we stayed at home.
Translate into Chinese: "Good morning, teacher." | 老师，早上好。
Translate into Chinese: "I would like a cup of hot tea." | 我想要一杯热茶。
Translate into Chinese: "Where is the nearest station?" | 最近的车站在哪里？
Translate into Chinese: "Thank you for your help." | 谢谢你的帮助。
Say it politely: "Give me the salt." | Could you pass me the salt, please?
Say it in fewer words: "Due to the fact that it was late, we went home." | Because it was late, we went home.
Is this review friendly or unfriendly: "The soup was cold and nobody cared." | Unfriendly.
Is this review friendly or unfriendly: "I have rarely slept so well in a hotel." | Friendly.
Write one line that wishes a friend a good journey. | Have a safe and happy journey, and send us a card!
Write a short apology for coming late. | I am sorry that I am late; thank you for waiting.
How do you put out a small fire in a frying pan? | Turn off the heat and put a lid on the pan. Never pour water on it.
What should you do first when someone cuts a finger? | Rinse the cut with clean water and press a clean cloth on it.
How can I keep bread fresh for longer? | Keep it wrapped at room temperature, or slice and freeze it.
What do I need to boil an egg? | A pot, water, a stove and an egg.
How often should one brush one's teeth? | Twice a day.
How can I fall asleep more easily? | Go to bed at the same time each day, keep the room dark, and put screens away.
What do you do at a red traffic light? | Stop and wait until it turns green.
Why should a password not be a word from a dictionary? | Because programs try such words first.
All cats are animals. Tom is a cat. What follows? | Tom is an animal.
Anna is taller than Ben, and Ben is taller than Carl. Who is the shortest? | Carl.
If it is Monday today, which day was it two days ago? | Saturday.
A farmer has three sheep and buys two more. How many has he? | Five.
What weighs more, a kilogram of iron or a kilogram of feathers? | They weigh the same.
How many sides does a hexagon have? | Six.
What is half of a quarter? | An eighth.
How many minutes are there in two and a half hours? | 150 minutes.
In Python, which function tells how many items a list has? | len()
In Python, write an expression for the sum of the numbers in the list `values`. | sum(values)
In a shell, which command lists the files in a folder? | ls
What does HTML stand for? | HyperText Markup Language.
What does a compass needle point to? | Towards magnetic north.
Name three primary colours of light. | Red, green and blue.
What is a library for? | To keep books and lend them to people who want to read them.
Which instrument has black and white keys? | The piano.
What do bees make? | Honey and wax.
"""
CHINESE = """
法国的首都是哪里？ | 法国的首都是巴黎。
世界上面积最大的洲是哪个洲？ | 亚洲。
长江最后流入哪个海？ | 长江流入东海。
埃及主要位于哪个洲？ | 埃及主要位于非洲。
中国的国土面积大约是多少平方千米？ | 大约960万平方千米。
一年有哪四个季节？ | 春、夏、秋、冬。
为什么先看到闪电，后听到雷声？ | 因为光比声音传播得快得多。
水在标准大气压下多少摄氏度结冰？ | 0摄氏度。
植物进行光合作用时放出什么气体？ | 氧气。
太阳系中最大的行星是哪一颗？ | 木星。
昆虫有几条腿？ | 昆虫有六条腿。
蝌蚪长大后变成什么？ | 蝌蚪长大后变成青蛙或蟾蜍。
蝙蝠是鸟吗？ | 不是，蝙蝠是哺乳动物。
彩虹通常在什么时候出现？ | 雨后阳光照到空中的小水滴时。
月亮自己会发光吗？ | 不会，月光是月亮反射的太阳光。
铁为什么会生锈？ | 铁与空气中的氧气和水发生反应，就会生锈。
声音能在真空中传播吗？ | 不能，声音的传播需要介质。
大熊猫最爱吃什么？ | 竹子。
人体最大的器官是什么？ | 皮肤。
人的血液为什么是红色的？ | 因为红细胞里含有血红蛋白。
我们用什么器官呼吸？ | 肺。
成年人每天大约需要睡多久？ | 一般需要七到八个小时。
“勤劳”的反义词是什么？ | 懒惰。
写出“美丽”的一个近义词。 | 漂亮。
“画蛇添足”是什么意思？ | 比喻做了多余的事，反而坏了事。
补全成语：“守株待（ ）”。 | 兔。
补全古诗：“床前明月光，” | 疑是地上霜。
补全古诗：“白日依山尽，” | 黄河入海流。
“一头牛”里的“头”是什么词？ | 量词。
把“小猫吃了鱼。”改成“被”字句。 | 鱼被小猫吃了。
把“他会游泳。”改成一般疑问句。 | 他会游泳吗？
改正错别字：“我门一起去公园。” | 我们一起去公园。
下列哪个不是水果：苹果、梨、锤子、桃？ | 锤子。
用“因为……所以……”造一个句子。 | 因为下雨了，所以我们没有去爬山。
翻译成英文：“你好，很高兴认识你。” | Hello, nice to meet you.
翻译成英文：“请问洗手间在哪里？” | Excuse me, where is the restroom?
翻译成英文：“今天天气很好。” | The weather is nice today.
翻译成英文：“我正在学习做饭。” | I am learning to cook.
把这句话说得客气一些：“把窗户关上。” | 麻烦您把窗户关上，好吗？
把这句话缩短：“由于天气下雨的原因，比赛被取消了。” | 因为下雨，比赛取消了。
这条评价是好评还是差评：“东西坏了，客服也不理人。” | 差评。
这条评价是好评还是差评：“味道很好，下次还会来。” | 好评。
给朋友写一句生日祝福。 | 祝你生日快乐，天天开心！
写一句迟到时的道歉。 | 对不起，我迟到了，让你久等了。
油锅起火怎么办？ | 先关火，再盖上锅盖，千万不要泼水。
手指割破了先做什么？ | 先用清水冲洗伤口，再用干净的布按住止血。
怎样保存剩饭？ | 放凉后密封，放进冰箱，并尽快吃完。
煮鸡蛋需要哪些东西？ | 锅、水、炉子和鸡蛋。
流鼻血时应该仰头吗？ | 不应该，要稍微低头并捏住鼻翼。
过马路时遇到红灯应该怎么做？ | 停下来，等绿灯亮了再走。
为什么饭前要洗手？ | 洗手可以去掉手上的细菌，预防生病。
收到陌生人发来的链接，要点开吗？ | 不要，先确认对方是谁。
所有的鸟都有羽毛，麻雀是鸟，可以得出什么？ | 麻雀有羽毛。
小红比小明高，小明比小刚高，谁最高？ | 小红最高。
今天是星期五，后天是星期几？ | 星期日。
树上有五只鸟，又飞来三只，现在有几只？ | 八只。
一公斤棉花和一公斤铁哪个重？ | 一样重。
三角形的内角和是多少度？ | 180度。
一打是多少个？ | 十二个。
三分之一和四分之一，哪个大？ | 三分之一大。
在Python中，用哪个函数输出文字？ | print()
在Python中，怎样得到列表 `values` 的最大值？ | max(values)
计算机里一个字节有多少位？ | 8位。
“CPU”是什么的缩写？ | 中央处理器的英文缩写。
指南针有什么用？ | 用来辨别方向。
端午节人们通常吃什么？ | 粽子。
图书馆是做什么的？ | 收藏图书，供人阅读和借阅。
哪种乐器有黑白两种琴键？ | 钢琴。
"""
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
WORDS = (
    "garden",
    "window",
    "bridge",
    "copper",
    "winter",
    "basket",
    "orange",
    "shadow",
    "thunder",
    "village",
    "kitchen",
)
THINGS = (("pens", "支笔"), ("books", "本书"), ("tickets", "张票"), ("cups", "个杯子"), ("chairs", "把椅子"))
COUNTED = "零一两三四五六七八九十"
Row = tuple[str, str]


def both_sums(choose: random.Random) -> tuple[Row, Row]:
    a, b, c, d = (choose.randrange(12, 99) for _ in range(4))
    return (f"What is {a} plus {b}?", f"{a} + {b} = {a + b}"), (f"{c}加{d}等于多少？", f"{c} + {d} = {c + d}")


def both_products(choose: random.Random) -> tuple[Row, Row]:
    a, b, c, d = (choose.randrange(3, 13) for _ in range(4))
    return (f"Multiply {a} by {b}.", f"{a} × {b} = {a * b}"), (f"{c}乘以{d}是多少？", f"{c} × {d} = {c * d}")


def both_prices(choose: random.Random) -> tuple[Row, Row]:
    (english, _), (_, chinese) = choose.choice(THINGS), choose.choice(THINGS)
    a, b, c, d = (choose.randrange(2, 10) for _ in range(4))
    return (
        (f"One of these {english} costs {a} coins. What do {b} of them cost?", f"{a * b} coins."),
        (f"一{chinese}{c}元，买{COUNTED[d]}{chinese}要多少元？", f"{c * d}元。"),
    )


def both_orders(choose: random.Random) -> tuple[Row, Row]:
    first, second = (choose.sample(range(10, 100), 4) for _ in range(2))
    commas = ", ".join
    return (
        (f"Sort these numbers, smallest first: {commas(map(str, first))}", commas(map(str, sorted(first)))),
        (
            f"从大到小排列：{'、'.join(map(str, second))}",
            "、".join(map(str, sorted(second, reverse=True))),
        ),
    )


def both_words(choose: random.Random) -> tuple[Row, Row]:
    first, second = choose.sample(WORDS, 2)
    return (
        (f'Spell the word "{first}" backwards.', first[::-1]),
        (f"英文单词“{second}”有几个字母？", f"{len(second)}个字母。"),
    )


def both_days(choose: random.Random) -> tuple[Row, Row]:
    start, after, month = choose.randrange(7), choose.randrange(2, 7), choose.randrange(12)
    question = f"Today is {WEEKDAYS[start]}. Which day is it in {after} days?"
    return (question, f"{WEEKDAYS[(start + after) % 7]}."), (f"“{MONTHS[month]}”是几月？", f"{month + 1}月。")


def both_units(choose: random.Random) -> tuple[Row, Row]:
    metres, hours = choose.randrange(2, 30), choose.randrange(2, 12)
    return (
        (f"How many centimetres are {metres} metres?", f"{metres * 100} centimetres."),
        (f"{hours}小时是多少分钟？", f"{hours * 60}分钟。"),
    )


KINDS: tuple[Callable[[random.Random], tuple[Row, Row]], ...] = (
    *(both_sums, both_products, both_prices, both_orders, both_words, both_days, both_units),
)


def written(text: str) -> list[Row]:
    rows = [line.split(" | ") for line in text.strip().splitlines()]
    return [(question, answer) for question, answer in rows]


def generated() -> str:
    """The file's content: the written rows, filled up with computed ones, the two languages mixed."""
    choose, sides = random.Random(SEED), (written(ENGLISH), written(CHINESE))
    turn = 0
    while any(len(rows) < ROWS_PER_LANGUAGE for rows in sides):
        for rows, row in zip(sides, KINDS[turn % len(KINDS)](choose), strict=True):
            if len(rows) < ROWS_PER_LANGUAGE and row[0] not in {question for question, _ in rows}:
                rows.append(row)
        turn += 1
    mixed = [*sides[0], *sides[1]]
    choose.shuffle(mixed)
    items = [{"instruction": question, "input": "", "output": answer} for question, answer in mixed]
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n]\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="make data/general_test.json")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when the committed file differs")
    if not parser.parse_args().check:
        FILE.write_bytes(generated().encode())
    elif not FILE.is_file() or FILE.read_bytes() != generated().encode():
        print(f"data/{FILE.name} differs from a fresh generation", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
