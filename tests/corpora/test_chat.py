"""Conversations: fed as the chat template puts them, counted where someone says something."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest

from moescope.corpora import Sampler, load_corpus
from moescope.corpora.chat import messages_of, tokens_of
from moescope.corpora.document import Message
from moescope.errors import CorpusError, MoescopeWarning
from tests.corpora import folders
from tests.corpora.texts import tokenizer, words

CHATML = "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
LOUD = "{% for m in messages %}{{ m.content | upper if loop.first else m.content }} {% endfor %}"
IN_TURN = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }} {% endfor %}"
)


def talker(template: str | None = CHATML):
    used = copy.deepcopy(tokenizer())
    used.chat_template = template
    return used


def chats(count: int) -> list[list[dict]]:
    return [
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": f"user {words(3 * number, 20)}\n"},
            {"role": "assistant", "content": f"assistant {words(3 * number + 1, 90)}"},
            {"role": "user", "content": "user"},
        ]
        for number in range(count)
    ]


def run(corpus, used, **options):
    sampler = Sampler(corpus, used, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MoescopeWarning)
        return sampler, list(sampler)


def test_a_whole_conversation_is_fed_as_the_template_makes_it(tmp_path: Path):
    path = folders.write_jsonl(tmp_path / "chat.jsonl", [{"messages": chat} for chat in chats(6)])
    corpus, used = load_corpus(path), talker()
    _, batches = run(corpus, used, num_tokens=5000, sequence_length=2000)
    expected = {tuple(used.apply_chat_template(chat, tokenize=True, return_dict=False)) for chat in chats(6)}
    rows = set()
    for batch in batches:
        for row in batch.input_ids_BS.tolist():
            while row[-1] == used.pad_token_id:
                row.pop()
            rows.add(tuple(row))
    assert rows == expected
    # What is counted are the messages' texts, and no word of the template's.
    said = {}
    for batch in batches:
        tokens = batch.tokens
        for row in range(tokens.num_documents):
            ids = tokens.token_ids_T[tokens.rows_T == row].tolist()
            said[used.decode(ids)] = said.get(used.decode(ids), 0) + 1
    assert said == {"".join(message["content"].strip() for message in chat): 1 for chat in chats(6)}


def test_roles_are_domains(tmp_path: Path):
    path = folders.write_parquet(tmp_path / "chat.parquet", [{"messages": chat} for chat in chats(30)])
    corpus, used = load_corpus(path, domain_field="messages.role"), talker()
    assert set(corpus.domains) == {"system", "user", "assistant"}
    sampler, batches = run(corpus, used, num_tokens=450, sequence_length=40)
    said: dict[str, list[str]] = {role: [] for role in corpus.domains}
    for batch in batches:
        tokens = batch.tokens
        for row, domain_id in enumerate(tokens.domain_ids_B.tolist()):
            said[corpus.domains[domain_id]].append(used.decode(tokens.token_ids_T[tokens.rows_T == row].tolist()))
        # Nothing of the template's is to be predicted.
        following = tokens.next_token_ids_T[tokens.next_token_ids_T >= 0]
        assert not set(following.tolist()) & {used.bos_token_id, used.eos_token_id}
    # Whole, but for the last, of which the budget took a part.
    assert all("be brief".startswith(text) for text in said["system"])
    assert sum(text != "be brief" for text in said["system"]) <= 1
    all_chats = chats(30)
    for role in ("user", "assistant"):
        spoken = ["".join(m["content"].strip() for m in chat if m["role"] == role) for chat in all_chats]
        assert all(any(text in whole for whole in spoken) for text in said[role])
    assert sampler.num_tokens_D.tolist() == [150, 150, 150]


@pytest.mark.parametrize(
    "value",
    [
        [{"from": "human", "value": "hi there"}, {"from": "gpt", "value": "hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi there"}, {"type": "image"}]},
         {"role": "assistant", "content": "hello"}, {"role": "assistant", "content": None}],
        {"role": ["user", "assistant"], "content": ["hi there", "hello"]},
    ],
)  # fmt: skip
def test_forms_of_messages(value):
    assert messages_of(value) == ((Message("user", "hi there"), Message("assistant", "hello")), False)


@pytest.mark.parametrize("value", [None, "text", [], ["text"], [{"content": "x"}], 3, {"a": 1}, [None]])
def test_what_is_no_conversation(value):
    assert messages_of(value) is None


def test_words_that_the_template_has_too_are_found_where_they_are_said():
    messages = [Message("user", "user"), Message("assistant", "assistant\n"), Message("user", "<|end|>user")]
    used = talker()
    chat = tokens_of(used, messages, "user")
    assert used.decode(chat.ids[chat.content]) == "user<|end|>user"
    assert chat.changed == 0


def test_a_template_that_refuses_or_changes(tmp_path: Path):
    rows = [{"messages": chat} for chat in chats(3)]
    rows.append(
        {"messages": [{"role": "user", "content": words(1, 20)}, {"role": "assistant", "content": words(2, 20)}]}
    )
    corpus = load_corpus(folders.write_jsonl(tmp_path / "chat.jsonl", rows))
    sampler, _ = run(corpus, talker(IN_TURN), num_tokens=1000)
    assert any("3 conversations that the chat template refuses skipped" in message for message in sampler.warnings)
    assert any("roles must alternate" in message for message in sampler.warnings)
    sampler, _ = run(
        corpus,
        talker(LOUD),
        num_tokens=1000,
    )
    assert any("4 messages that the chat template changes read and not counted" in m for m in sampler.warnings)
    with pytest.raises(CorpusError, match="holds no text: 4 conversations that the chat template refuses"):
        run(corpus, talker("{{ nothing.at.all }}"), num_tokens=1000)


def test_without_a_template_the_texts_are_joined(tmp_path: Path):
    corpus = load_corpus(folders.write_jsonl(tmp_path / "chat.jsonl", [{"messages": chat} for chat in chats(3)]))
    sampler, batches = run(corpus, talker(None), num_tokens=5000, sequence_length=2000)
    assert any("3 conversations read as plain text" in message for message in sampler.warnings)
    fed = tokenizer().decode(batches[0].input_ids_BS[0].tolist(), skip_special_tokens=True)
    assert fed.startswith("be brief\n\nuser ")
