"""Rows from every kind of source, prompts from rows, and the sentence that a user gets when something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import reasoning_gym
from pyarrow import parquet
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from rlvr.config.load import LOCAL_SUFFIXES
from rlvr.config.schema import DataConfig, DataSource
from rlvr.data import build_dataset, load_rows
from rlvr.data.sources import READERS, SEED_STRIDE
from rlvr.errors import DataError

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
ROWS = [{"question": "two and two", "answer": "4"}, {"question": "one and two", "answer": "3"}]


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per word."""
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", chat_template=chat_template)


def rows_of(dataset: str, base_dir: Path = Path(), **options: Any) -> list[dict[str, Any]]:
    return load_rows(DataSource(dataset=dataset, **options), base_dir, "data.train")


def config(**options: Any) -> DataConfig:
    return DataConfig(train=DataSource(dataset="unused"), **options)


def prompt_rows(*prompts: str) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "answer": "1"} for prompt in prompts]


# ---- reasoning-gym --------------------------------------------------------------------------------------------------


def test_procedural_rows_have_question_answer_metadata_task_and_prompt() -> None:
    rows = rows_of("reasoning_gym://chain_sum?seed=1&size=5&min_terms=3&max_terms=3")
    assert len(rows) == 5
    first = rows[0]
    assert set(first) == {"question", "answer", "metadata", "task", "prompt"}
    assert first["prompt"] == first["question"]
    assert first["task"] == "chain_sum"
    assert first["metadata"]["num_terms"] == 3


def test_procedural_seeds_share_no_items_although_raw_ones_do() -> None:
    uri = "reasoning_gym://chain_sum?size=30&min_terms=6&max_terms=6&seed="
    ours = [{row["question"] for row in rows_of(f"{uri}{seed}")} for seed in (1, 2)]
    assert not ours[0] & ours[1]
    raw = [
        {
            item["question"]
            for item in reasoning_gym.create_dataset("chain_sum", size=30, min_terms=6, max_terms=6, seed=s)
        }
        for s in (1, 2)
    ]
    assert len(raw[0] & raw[1]) == 29


def test_procedural_rows_are_the_same_for_the_same_seed_and_seed_zero_is_the_default() -> None:
    assert rows_of("reasoning_gym://chain_sum?size=4") == rows_of("reasoning_gym://chain_sum?seed=0&size=4")


def test_procedural_limit_takes_the_first_rows_without_making_the_rest() -> None:
    limited = rows_of(f"reasoning_gym://chain_sum?size={SEED_STRIDE}", limit=3)
    assert limited == rows_of("reasoning_gym://chain_sum?size=3")


def test_procedural_parameters_take_the_type_of_the_task() -> None:
    uri = "reasoning_gym://simple_equations?size=6&operators=%2B,-&operators_weights=0.5,0.5"
    difficulty = rows_of(uri)[0]["metadata"]["difficulty"]
    assert difficulty["operators_weights"] == [0.5, 0.5]
    assert rows_of("reasoning_gym://simple_equations?size=6&operators=+,-&operators_weights=0.5,0.5") == rows_of(uri)
    negatives = rows_of("reasoning_gym://chain_sum?size=20&allow_negation=true")
    assert any("-" in row["answer"] for row in negatives)
    natural = rows_of("reasoning_gym://basic_arithmetic?size=1&format_style=natural")
    assert natural != rows_of("reasoning_gym://basic_arithmetic?size=1&format_style=simple")
    assert rows_of("reasoning_gym://word_sorting?size=1&transformation=uppercase")[0]["answer"].isupper()


def test_procedural_task_that_names_no_answer_is_judged_by_its_metadata() -> None:
    (row,) = rows_of("reasoning_gym://rush_hour?size=1")
    assert row["answer"] == ""


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("chain_sun", ["unknown task 'chain_sun'", "did you mean 'chain_sum'?"]),
        ("xyz", ["unknown task 'xyz'", "tasks are composite, "]),
        ("chain_sum?xyz=6", ["parameters are min_terms, max_terms"]),
        ("chain_sum?max_term=6", ["unknown parameter 'max_term'", "did you mean 'max_terms'?"]),
        ("chain_sum?max_terms=six", ["max_terms=six", "a whole number"]),
        ("chain_sum?allow_negation=yes", ["allow_negation=yes", "one of true, false"]),
        ("basic_arithmetic?format_style=loud", ["format_style=loud", "one of simple, natural"]),
        ("simple_equations?operators_weights=a,b", ["operators_weights=a,b", "a number"]),
        ("time_intervals?min_time=12", ["min_time=12", "left out"]),
        ("chain_sum?seed", ["'seed' has no value"]),
        ("chain_sum?seed=1&seed=2", ["'seed' is given twice"]),
        ("chain_sum?seed=-1", ["seed=-1", "from 0 to 4293"]),
        ("chain_sum?seed=4294", ["seed=4294", "from 0 to 4293"]),
        ("chain_sum?seed=none", ["seed=None", "from 0 to 4293"]),
        ("chain_sum?size=1000001", ["size=1000001", "from 1 to 1000000"]),
        ("chain_sum?min_terms=5&max_terms=2", ["the task refuses", "max_terms must be"]),
        ("composite", ["the task refuses"]),
    ],
)
def test_procedural_mistakes_name_the_part_and_the_remedy(uri: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(f"reasoning_gym://{uri}")
    message = str(caught.value)
    assert message.startswith(f"data.train: reasoning_gym://{uri}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


# ---- local files ----------------------------------------------------------------------------------------------------


def write(folder: Path, name: str) -> None:
    """ROWS in the format of the extension."""
    path = folder / name
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".csv":
        path.write_text("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS))
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n")
    else:
        path.write_text(json.dumps(ROWS))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet", "rows.csv"])
def test_local_file_gives_its_rows_with_the_question_as_prompt(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    assert rows_of(name, tmp_path) == [row | {"prompt": row["question"]} for row in ROWS]


def test_local_formats_are_those_that_resolved_recipes_anchor() -> None:
    assert set(READERS) == set(LOCAL_SUFFIXES)


def test_json_file_may_wrap_its_rows_in_data(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"data": ROWS}))
    assert len(rows_of("rows.json", tmp_path)) == 2


def test_csv_values_stay_text_and_may_hold_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,answer\n"two\nlines",007\n')
    assert rows_of("rows.csv", tmp_path) == [{"prompt": "two\nlines", "answer": "007"}]


def test_local_file_is_sought_beside_the_recipe_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, work = tmp_path / "recipes", tmp_path / "work"
    recipes.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "rows.json").write_text(json.dumps([{"prompt": "work", "answer": "1"}]))
    assert rows_of("rows.json", recipes)[0]["prompt"] == "work"
    (recipes / "rows.json").write_text(json.dumps([{"prompt": "recipes", "answer": "1"}]))
    assert rows_of("rows.json", recipes)[0]["prompt"] == "recipes"


def test_columns_are_added_under_our_names_and_limit_takes_the_first_rows(tmp_path: Path) -> None:
    write(tmp_path, "rows.json")
    rows = rows_of("rows.json", tmp_path, columns={"prompt": "answer", "answer": "question"}, limit=1)
    assert rows == [{"question": "two and two", "prompt": "4", "answer": "two and two"}]


def test_prompt_column_is_kept_when_there_is_a_question_too(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "p", "question": "q", "answer": "a"}]))
    assert rows_of("rows.json", tmp_path)[0]["prompt"] == "p"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"answer": "1"}\n\n{"answer": \n', ["a.jsonl, line 3", "not valid JSON"]),
        ("a.jsonl", '{"answer": "1"}\n[1]\n', ["a.jsonl, line 2", "not a JSON object"]),
        ("a.json", '[\n{"answer": "1"},\n{]', ["a.json, line 3", "not valid JSON"]),
        ("a.json", '{"rows": []}', ["a.json", "list of rows"]),
        ("a.json", '[{"answer": "1"}, 5]', ["a.json", "row 2 is not a JSON object"]),
        ("a.csv", "prompt,answer\na,b\nc\n", ["a.csv, line 3", "not 2 values"]),
        ("a.csv", "prompt,answer\na,b,c\n", ["a.csv, line 2", "not 2 values"]),
        ("a.csv", 'prompt,answer\na,"b', ["a.csv, line 2", "not valid CSV"]),
        ("a.parquet", "no parquet", ["a.parquet", "not a readable parquet file"]),
        ("a.json", "[]", ["a.json is empty"]),
        ("a.csv", "prompt,answer\n", ["a.csv is empty"]),
        ("a.json", '[{"answer": "1"}, {"prompt": "p"}]', ["row 2 of a.json has no `answer`"]),
        ("a.json", '[{"answer": null}]', ["row 1 of a.json has no `answer`"]),
        ("a.json", '[{"answer": " "}]', ["row 1 of a.json has no `answer`"]),
        ("a.txt", "text", ["a.txt has no known format", ".jsonl"]),
    ],
)
def test_broken_file_is_named_with_the_place(tmp_path: Path, name: str, content: str, words: list[str]) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"^data\.train: ") as caught:
        rows_of(name, tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"answer": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8 at byte 12"):
        rows_of("a.jsonl", tmp_path)


def test_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl")
    with pytest.raises(DataError, match=r"row\.jsonl does not exist in .*; did you mean 'rows\.jsonl'\?"):
        rows_of("row.jsonl", tmp_path)


def test_folder_is_refused_as_a_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; give one file"):
        rows_of("./", tmp_path)


def test_unknown_source_column_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "rows.json")
    with pytest.raises(DataError, match=r"has no column 'questions'; did you mean 'question'\?"):
        rows_of("rows.json", tmp_path, columns={"prompt": "questions"})


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(DataError, match="unknown scheme 'reasoning-gym'; write reasoning_gym://TASK"):
        rows_of("reasoning-gym://chain_sum")


def test_hub_data_set_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\nfrom rlvr.config.schema import DataSource\nfrom rlvr.data import load_rows\n"
        "from rlvr.errors import DataError\n"
        "try:\n    load_rows(DataSource(dataset='nobody/nothing', split='test'), Path(), 'data.train')\n"
        "except DataError as error:\n    print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("data.train: cannot load 'nobody/nothing', split 'test', from the Hub (")
    assert "check these names and the connection" in done.stdout
    assert done.stdout.count("\n") == 1


# ---- prompts --------------------------------------------------------------------------------------------------------


def test_prompt_is_text_without_a_chat_template() -> None:
    dataset = build_dataset(prompt_rows("a b", "c"), config(), tokenizer(), "data.train")
    assert dataset["prompt"][:] == ["a b", "c"]
    assert dataset["answer"][:] == ["1", "1"]
    assert dataset["prompt_id"][:] == [0, 1]


def test_prompt_is_messages_with_a_chat_template() -> None:
    dataset = build_dataset(prompt_rows("a b"), config(system="be brief"), tokenizer(CHAT_TEMPLATE), "data.train")
    assert dataset[0]["prompt"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a b"},
    ]


def test_chat_never_keeps_text_although_there_is_a_template() -> None:
    dataset = build_dataset(prompt_rows("a b"), config(chat="never"), tokenizer(CHAT_TEMPLATE), "data.train")
    assert dataset[0]["prompt"] == "a b"


def test_chat_always_needs_a_template() -> None:
    with pytest.raises(DataError, match=r"data\.chat is 'always', but the tokenizer has no chat template"):
        build_dataset(prompt_rows("a"), config(chat="always"), tokenizer(), "data.train")


@pytest.mark.parametrize("chat_template", [None, CHAT_TEMPLATE])
def test_system_text_is_never_dropped_silently(chat_template: str | None) -> None:
    with pytest.raises(DataError, match=r"data\.system needs a chat"):
        build_dataset(prompt_rows("a"), config(system="s", chat="never"), tokenizer(chat_template), "data.train")


def test_template_reads_columns_and_their_keys() -> None:
    rows = [{"metadata": {"expression": "1 + 2"}, "messages": [{"content": "hi"}], "answer": "3"}]
    data = config(template="solve {metadata[expression]} = {messages[0][content]} {{x}}")
    assert build_dataset(rows, data, tokenizer(), "data.train")[0]["prompt"] == "solve 1 + 2 = hi {x}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{metadata[expresion]}", ["'expresion'", "did you mean 'expression'?"]),
        ("{xyz}", ["'xyz'", "its columns are question, metadata, answer"]),
        ("{quetsion}", ["'quetsion'", "did you mean 'question'?"]),
        ("{question", ["cannot be filled in"]),
        ("{}", ["cannot be filled in"]),
        ("{question.text}", ["cannot be filled in"]),
        ("{question[a]}", ["cannot be filled in"]),
        (" ", ["the prompt is empty"]),
    ],
)
def test_template_mistakes_name_the_row_and_the_key(template: str, words: list[str]) -> None:
    good = {"question": "q", "metadata": {"expression": "1"}, "answer": "1"}
    with pytest.raises(DataError, match=r"^data\.train: row 1: ") as caught:
        build_dataset([good, good], config(template=template), tokenizer(), "data.train")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "t", "answer": "1"}, "no `prompt` among the columns text, answer"),
        ({"prompt": None, "answer": "1"}, "no `prompt`"),
        ({"prompt": "  ", "answer": "1"}, "the prompt is empty"),
        ({"prompt": [{"role": "user", "content": "x"}], "answer": "1"}, "`prompt` is a list, not text"),
    ],
)
def test_row_without_a_prompt_is_named(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=r"^data\.train: row 2: ") as caught:
        build_dataset([*prompt_rows("a"), row], config(), tokenizer(), "data.train")
    assert words in str(caught.value)


def test_dicts_and_lists_are_stored_as_json_of_their_own_shape() -> None:
    metadata = [{"a": [1, 2]}, {"b": {"c": None}}, None]
    rows = [{"prompt": "p", "answer": "1", "metadata": each, "source": "s"} for each in metadata]
    dataset = build_dataset(rows, config(), tokenizer(), "data.train")
    assert [value and json.loads(value) for value in dataset["metadata"]] == metadata
    assert dataset["source"][:] == ["s", "s", "s"]


def test_answers_are_text_and_a_column_that_some_rows_lack_is_none() -> None:
    rows = [{"prompt": "p", "answer": 4}, {"prompt": "p", "answer": "x", "level": 2}]
    dataset = build_dataset(rows, config(), tokenizer(), "data.train")
    assert dataset["answer"][:] == ["4", "x"]
    assert dataset["level"][:] == [None, 2]


def test_column_of_mixed_types_is_named() -> None:
    rows = [{"prompt": "p", "answer": "1", "level": level} for level in (1, "hard")]
    with pytest.raises(DataError, match="column 'level' cannot be stored"):
        build_dataset(rows, config(), tokenizer(), "data.train")


def test_long_prompt_is_an_error_that_counts_the_rows() -> None:
    with pytest.raises(DataError) as caught:
        build_dataset(prompt_rows("a", "a b c", "a b c d"), config(max_prompt_length=2), tokenizer(), "data.train")
    message = str(caught.value)
    assert "the prompt of row 2 has 3 tokens, data.max_prompt_length is 2 and 2 of 3 rows are over it" in message


def test_long_prompts_are_dropped_on_demand_and_the_others_keep_their_ids() -> None:
    data = config(max_prompt_length=2, long_prompts="drop")
    dataset = build_dataset(prompt_rows("a b c", "a b", "c"), data, tokenizer(), "data.train")
    assert dataset["prompt"][:] == ["a b", "c"]
    assert dataset["prompt_id"][:] == [1, 2]


def test_dropping_every_prompt_is_an_error() -> None:
    with pytest.raises(DataError, match=r"all 2 prompts are over .* raise it to 3 or more"):
        build_dataset(
            prompt_rows("a b c", "a b c d"), config(max_prompt_length=2, long_prompts="drop"), tokenizer(), "data.train"
        )


def test_length_counts_what_the_chat_template_adds() -> None:
    rows, chat = prompt_rows("a b"), tokenizer(CHAT_TEMPLATE)
    assert len(build_dataset(rows, config(max_prompt_length=4), chat, "data.train")) == 1  # user a b assistant
    with pytest.raises(DataError, match="has 4 tokens"):
        build_dataset(rows, config(max_prompt_length=3), chat, "data.train")


def test_procedural_rows_become_a_data_set() -> None:
    rows = rows_of("reasoning_gym://chain_sum?size=3&min_terms=2&max_terms=2")
    dataset = build_dataset(rows, config(template="solve {metadata[expression]} ="), tokenizer(), "data.train")
    assert dataset[0]["prompt"] == f"solve {rows[0]['metadata']['expression']} ="
    assert json.loads(dataset[0]["metadata"])["source_dataset"] == "chain_sum"
    assert dataset["task"][:] == ["chain_sum"] * 3
