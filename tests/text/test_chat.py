import datetime

import pytest

from rlvr import errors
from rlvr.text import chat
from rlvr.text.tokenizer import ByteTokenizer
from rlvr.types import Task


class TemplateTokenizer(ByteTokenizer):
    """Bytes, with a template and a begin-of-sequence token before documents."""

    def __init__(self, template):
        self.chat_template = template

    def encode(self, text, *, add_special_tokens=False):
        return [256] * add_special_tokens + super().encode(text)


CHATML = """
{%- if messages[0]['role'] != 'system' %}
    {{- '[system]default\n' }}
{%- endif %}
{% for m in messages %}
    {%- if m['role'] == 'tool' %}{% continue %}{% endif %}
[{{ m['role'] }}]{{ m['content'] }}
{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""


def task(**changes):
    return Task(**{"prompt_id": 1, "task": "sums", "prompt": "1+1?", "answer": "2", "verifier": "exact"} | changes)


def test_plain_text_is_encoded_as_the_tokenizer_does():
    assert chat.encode_prompt(ByteTokenizer(), "hé") == list("hé".encode())
    assert chat.encode_prompt(TemplateTokenizer(CHATML), "hi") == [256, *b"hi"]


def test_messages_go_through_the_template_without_a_second_bos():
    ids = chat.encode_prompt(TemplateTokenizer(CHATML), [{"role": "user", "content": "hi"}])
    assert bytes(ids) == b"[system]default\n[user]hi\n[assistant]"


def test_tasks():
    tokenizer = TemplateTokenizer(CHATML)
    assert chat.task_messages(task()) == [{"role": "user", "content": "1+1?"}]
    assert bytes(chat.encode_task(tokenizer, task())) == b"[system]default\n[user]1+1?\n[assistant]"
    assert bytes(chat.encode_task(tokenizer, task(system="Be brief."))) == (
        b"[system]Be brief.\n[user]1+1?\n[assistant]"
    )
    assert chat.encode_task(ByteTokenizer(), task()) == list(b"1+1?")
    with pytest.raises(errors.DataError, match=r"task 'sums' has a system turn, but .* no chat template"):
        chat.encode_task(ByteTokenizer(), task(system="Be brief."))


def test_rendering_equals_transformers():
    transformers_rendering = pytest.importorskip("transformers.utils.chat_template_utils")
    templates = [
        CHATML,
        "{{ bos_token }}{% for m in messages %}\n  {% if m %}\n{{ m | tojson }}\n  {% endif %}\n{% endfor %}",
        "{{ strftime_now('%Y') }}{{ messages | tojson(indent=2) }}{{ eos_token }}",
    ]
    messages = [{"role": "system", "content": "<é & 'q'>"}, {"role": "user", "content": " a\n"}]
    for template in templates:
        (expected,), _ = transformers_rendering.render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=True,
            bos_token="<bos>",
            eos_token="<eos>",
        )
        assert chat.render_messages(TemplateTokenizer(template), messages) == expected


def test_templates_get_the_date_and_run_in_a_sandbox():
    hello = [{"role": "user", "content": "x"}]
    year = str(datetime.datetime.now().year)
    assert chat.render_messages(TemplateTokenizer("{{ strftime_now('%Y') }}"), hello) == year
    for attack in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(errors.DataError, match="chat template cannot render"):
            chat.render_messages(TemplateTokenizer(attack), hello)


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, [{"role": "user", "content": "x"}], "messages need a chat template"),
        (CHATML, [], "messages is empty"),
        (CHATML, [{"role": "user"}], r"messages\[0\].content=None must be a string"),
        (CHATML, [{"role": "user", "content": "x"}, "y"], r"messages\[1\] is a str, expected an object"),
        (CHATML, [{"role": 1, "content": "x"}], r"messages\[0\].role=1 must be a string"),
        ("{{ raise_exception('no tools') }}", [{"role": "user", "content": "x"}], r"\(user\): no tools"),
        ("{% if %}", [{"role": "user", "content": "x"}], "chat template cannot render"),
        ("{{ messages + 1 }}", [{"role": "user", "content": "x"}], "chat template cannot render"),
        ("", [{"role": "user", "content": "x"}], "the prompt is empty"),
        (None, "", "the prompt is empty"),
        (None, "a\ud800", "half of a surrogate pair at character 1"),
    ],
)
def test_refusals(template, messages, message):
    tokenizer = ByteTokenizer() if template is None else TemplateTokenizer(template)
    with pytest.raises(errors.DataError, match=message):
        chat.encode_prompt(tokenizer, messages)
