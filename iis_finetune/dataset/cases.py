"""What can be wrong with a row: what LLaMA-Factory 0.9.5 does about it, the sentence, and what mends it."""

from __future__ import annotations

# effect: `stop` ends the loading with an exception, `drop` removes the row with a log line, `keep` trains it all the
# same, `file` is a stop that belongs to the file and not to a row.
# Each was run against LLaMA-Factory 0.9.5 with datasets 4.0.0 and pyarrow 26 in 2026-11 and is compared with it in
# tests/test_dataset_against_llamafactory.py.
CASES: dict[str, tuple[str, str, str]] = {
    # what the files hold
    "json": ("stop", "not valid JSON: {detail}", "mend this line"),
    "encoding": (
        "stop",
        "not UTF-8, it looks like {detail}",
        "run: iconv -f {detail} -t UTF-8 '{file}' > new && mv new '{file}'",
    ),
    "bom": ("stop", "a byte order mark stands before the array", "run: sed -i '1s/^\\xEF\\xBB\\xBF//' '{file}'"),
    "surrogate": ("stop", "half of a surrogate pair (\\ud83d or the like)", "remove the broken escape"),
    "not_object": ("stop", "not an object with columns", 'write each row as {{"column": "text", ...}}'),
    "csv_cells": ("stop", "{detail}", "quote the cells that hold commas"),
    "unreadable": ("stop", "cannot be read: {detail}", "write the file anew"),
    "no_rows": ("file", "the file holds no rows", "put the data into it"),
    "mixed": ("stop", "{detail}: one place, one type", "give it the same type in every row"),
    "late_column": (
        "stop",
        "'{detail}' is first filled after the first 10 MB or in a later file, when the columns are fixed already",
        "fill it in the first row as well, or remove it",
    ),
    "no_column": (
        "file",
        "no row has the column {detail}",
        'map the columns that are there: "columns": {{...}} in dataset_info.json',
    ),
    "wrapped": ("file", "the file is one object and the rows lie in its '{detail}'", "keep only that list in the file"),
    "no_member": (
        "file",
        "no message has {detail}",
        'name the words that the messages use: "tags": {{"role_tag": ..., "content_tag": ...}} in dataset_info.json',
    ),
    "dates": (
        "file",
        "every '{detail}' looks like a date, so it is read as a time and not as text",
        "write the rows as one JSON array [..] in a .json file, or add a word to the text",
    ),
    # what a row holds
    "no_answer": ("drop", "the answer is not a text", "give the row an answer, or remove it"),
    "labelled": ("drop", "it has the true/false label of KTO data", "train with stage: kto, or do not map kto_tag"),
    "no_pair": ("drop", "chosen and rejected are not both there", "give the row both, or remove it"),
    "no_label": ("drop", "the label is not true or false", "write true or false, without quotes"),
    "question_type": ("stop", "'{detail}' is not a text", "put it in quotes"),
    "history": ("stop", "'{detail}' is not a list of [question, answer] pairs", 'write [["question", "answer"], ...]'),
    "messages_type": ("stop", "'{detail}' is not a list of messages", "give the row its messages, or remove it"),
    "empty": ("drop", "there are no messages", "remove the row"),
    "pt_empty": ("stop", "there are no messages", "remove the row"),
    "role": (
        "drop",
        "a message is from '{detail}', which is none of the roles in order",
        "system only comes first; name other words for roles in dataset_info.json under tags",
    ),
    "role_unknown": ("stop", "a message is from '{detail}', which the tags do not name", "add it to the tags"),
    "order": (
        "drop",
        "a message from {detail} stands where the other side should speak",
        "begin with the user and take turns",
    ),
    "count": ("drop", "the last message is not an answer", "end with an answer"),
    "count_pair": ("drop", "the messages before a pair must end with the user", "take the last answer out of messages"),
    "pair_role": ("stop", "chosen or rejected is from '{detail}'", "let the assistant give both"),
    "not_text": ("stop", "the text of a message from {detail} is not a text", "write a string, or remove the row"),
    "function_json": ("stop", "a function call is not JSON", 'write {{"name": "...", "arguments": {{...}}}}'),
    "function_keys": (
        "stop",
        "a function call lacks name or arguments",
        'write {{"name": "...", "arguments": {{...}}}}',
    ),
    "tools_type": ("stop", "the tools are not a string", "write the list of tools as JSON inside a string"),
    "tools_json": ("stop", "the tools are not JSON", "write a JSON list of tools inside a string"),
    "tools_list": ("stop", "the tools are not a list of objects", "write a JSON list of tools inside a string"),
    "kto_neighbour": (
        "stop",
        "rows are dropped, and in KTO the row after a dropped one needs its answer",
        "remove the rows that are dropped",
    ),
    # what is trained all the same
    "empty_answer": ("keep", "the answer is empty, which trains the model to say nothing", "remove these rows"),
    "empty_question": ("keep", "the question is empty", "fill it or remove these rows"),
    "same_pair": ("keep", "chosen and rejected are the same", "remove these rows"),
    "empty_pair": ("keep", "chosen or rejected is empty", "remove these rows"),
    "one_label": ("keep", "every label is {detail}: there is nothing to compare", "add rows with the other label"),
    "special_word": (
        "keep",
        "the text holds {detail}, which becomes the real special token",
        "remove it from the text if it is not meant",
    ),
    "placeholder": ("keep", "the text holds {detail}, which a text model is taught literally", "remove it"),
}
