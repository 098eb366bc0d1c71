"""Tool calls: three syntaxes, BFCL's rules of equality, silence where no call is right, and the published answers."""

import gzip
import json
import pathlib

import pytest

from rlvr.verifiers import base
from rlvr.verifiers.call_literals import read_java, read_javascript
from rlvr.verifiers.call_syntax import CallSyntaxError, parse_calls

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "bfcl"

WEATHER = {
    "name": "get.weather",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "limit": {"type": "float"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "window": {"type": "tuple", "items": {"type": "float"}},
            "where": {"type": "dict"},
            "stops": {"type": "array", "items": {"type": "dict"}},
            "metric": {"type": "boolean"},
            "raw": {"type": "any"},
        },
        "required": ["city"],
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": []}}


def verify(completion, truth, functions=(WEATHER, CLOCK), **more):
    payload = {"functions": list(functions), "ground_truth": truth, **more}
    return base.verify("tool_call", completion, "", json.loads(json.dumps(payload)))


def python(**arguments):
    return f"get.weather({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def json_calls(calls):
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])


def tagged(calls):
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in calls
    )


def python_calls(calls):
    rendered = [f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in calls]
    return f"[{', '.join(rendered)}]"


SYNTAXES = (tagged, json_calls, python_calls)


@pytest.mark.parametrize(
    ("accepted", "value", "right"),
    [
        ({"city": ["New York, NY"]}, {"city": "new york NY."}, True),  # case, spaces and ,./-_*^ do not count
        ({"city": ["it's"]}, {"city": 'it"s'}, True),
        ({"city": ["Rome"]}, {"city": "Romes"}, False),
        ({"city": ["Rome", "Roma"]}, {"city": "Roma"}, True),
        ({"city": ["7"]}, {"city": 7}, False),  # an integer is no text
        ({"city": ["a"], "days": [3]}, {"city": "a", "days": 3}, True),
        ({"city": ["a"], "days": [3]}, {"city": "a", "days": 3.0}, False),  # a float is no integer
        ({"city": ["a"], "days": [1]}, {"city": "a", "days": True}, False),
        ({"city": ["a"], "days": ["n"]}, {"city": "a", "days": "n"}, True),  # a variable where the answers have one
        ({"city": ["a"], "days": ["n"]}, {"city": "a", "days": "N"}, False),  # and that is compared as it is
        ({"city": ["a"], "limit": [3.0]}, {"city": "a", "limit": 3}, True),
        ({"city": ["a"], "limit": [3.0]}, {"city": "a", "limit": "3.0"}, False),
        ({"city": ["a"], "limit": [0.5]}, {"city": "a", "limit": 10**400}, False),
        ({"city": ["a"], "metric": [True]}, {"city": "a", "metric": 1}, False),
        ({"city": ["a"], "metric": [True]}, {"city": "a", "metric": "true"}, False),
        ({"city": ["a"], "tags": [["x", "y"]]}, {"city": "a", "tags": ["X", "Y"]}, True),
        ({"city": ["a"], "tags": [["x", "y"]]}, {"city": "a", "tags": ["y", "x"]}, False),
        ({"city": ["a"], "tags": [["x", "y"]]}, {"city": "a", "tags": ["x"]}, False),
        ({"city": ["a"], "window": [[1.0, 2.5]]}, {"city": "a", "window": [1, 2.5]}, True),
        ({"city": ["a"], "where": [{"k": ["v", ""], "n": [2]}]}, {"city": "a", "where": {"n": 2}}, True),
        ({"city": ["a"], "where": [{"k": ["v", ""], "n": [2]}]}, {"city": "a", "where": {"n": 2, "k": "w"}}, False),
        ({"city": ["a"], "where": [{"n": [2]}]}, {"city": "a", "where": {"n": 2, "more": 1}}, False),
        ({"city": ["a"], "where": [{"n": [2], "k": ["v"]}]}, {"city": "a", "where": {"n": 2}}, False),
        ({"city": ["a"], "where": [{"in": [{"deep": ["X Y"]}]}]}, {"city": "a", "where": {"in": {"deep": "xy"}}}, True),
        ({"city": ["a"], "stops": [[{"k": ["v"]}, {"k": ["w"]}]]}, {"city": "a", "stops": [{"k": "V"}, {"k": "W"}]}, 1),
        ({"city": ["a"], "stops": [[{"k": ["v"]}, {"k": ["w"]}]]}, {"city": "a", "stops": [{"k": "w"}, {"k": "v"}]}, 0),
        ({"city": ["a"], "days": [3, ""]}, {"city": "a"}, True),  # "" says: may be left out
        ({"city": ["a"], "days": [3]}, {"city": "a"}, False),
        ({"city": ["a", ""]}, {}, False),  # but not if it is required
        ({"city": [""]}, {}, True),
        ({"city": ["a"]}, {"city": "a", "days": 3}, False),  # nobody asked for that
        ({"city": ["a"]}, {"city": "a", "planet": "Mars"}, False),
        ({"city": ["a"], "tags": []}, {"city": "a", "tags": []}, True),  # nothing to be said
        ({"city": ["a"], "raw": ["x"]}, {"city": "a", "raw": "X"}, True),
        ({"city": ["a"], "raw": [None]}, {"city": "a", "raw": None}, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_rules_of_one_call(accepted, value, right, syntax):
    verdict = verify(syntax([("get.weather", value)]), [{"get.weather": accepted}])
    assert (verdict.score, verdict.status) == (float(right), "correct" if right else "wrong"), verdict.detail


TWO = [{"get.weather": {"city": ["Rome"]}}, {"get.weather": {"city": ["Oslo", "Rome"]}}]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("cities", "right"),
    [
        (["Rome", "Oslo"], True),
        (["Oslo", "Rome"], True),
        (["Rome", "Rome"], True),
        (["Oslo", "Oslo"], False),
        (["Rome"], False),
        (["Rome", "Oslo", "Oslo"], False),
    ],
)
def test_parallel_calls_match_one_to_one_in_any_order(syntax, cities, right):
    calls = [("get.weather", {"city": city}) for city in cities]
    for truth in (TWO, TWO[::-1]):  # whichever answer comes first must not take the other's call
        assert verify(syntax(calls), truth).score == right


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("clock(zone='UTC')", 1, 1),
        ("```python\n[clock(zone='UTC')]\n```", 1, 1),
        ("`clock(zone='UTC')`", 1, 1),
        ('```json\n[{"name": "clock", "arguments": {"zone": "UTC"}}]\n```', 1, 1),
        ('{"name": "clock", "arguments": {"zone": "UTC"}}', 1, 1),
        ('{"name": "clock", "parameters": {"zone": "UTC"}}', 1, 1),
        ('[{"clock": {"zone": "UTC"}}]', 1, 1),
        ('{"name": "clock", "arguments": "{\\"zone\\": \\"UTC\\"}"}', 1, 1),
        ("<think>clock(zone='XXX')</think>clock(zone='UTC')", 1, 1),
        ('I look.<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>', 1, 1),
        ("I look: clock(zone='UTC').", 0, 1),
        ("Here it is:\nclock(zone='UTC')\nDone.", 0, 1),
        ('Sure: {"name": "clock", "arguments": {"zone": "UTC"}} is it.', 0, 1),
        ('<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}', 0, 1),  # cut off before the tag closed
        ('<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}</tool_call>', 0, 0),
        ("clock('UTC')", 0, 0),  # an argument without a name
        ("clock(zone='X', zone='UTC')", 0, 0),  # given twice
        ('{"name": "clock", "arguments": {"zone": "X", "zone": "UTC"}}', 0, 0),
        ("clock(**{'zone': 'UTC'})", 0, 0),
        ("clock(zone='U' + 'TC')", 0, 0),  # nothing is computed
        ("clock(zone=__import__('os').getcwd())", 0, 0),
        ("clock(zone='UTC'), clock(zone='CET')", 0, 0),
        ("<think>clock(zone='UTC')", 0, 0),
        ("The time zone is UTC.", 0, 0),
        ("", 0, 0),
        ("[]", 0, 0),
    ],
)
def test_syntaxes(completion, strict, lenient):
    verdict = verify(completion, [{"clock": {"zone": ["UTC"]}}])
    assert (verdict.parts["strict"], verdict.parts["lenient"]) == (strict, lenient), verdict.detail


def test_values_are_read_and_never_evaluated():
    (call,) = parse_calls(
        "f(a=-1, b=(1, [2.5, None]), c={'k': True}, d=name, e=x.y, f=g(1), h=g(z=1), from='a from=b')"
    )
    assert call.arguments == {
        "a": -1, "b": (1, [2.5, None]), "c": {"k": True}, "d": "name", "e": "x.y", "f": "g(1)", "h": {"g": {"z": 1}},
        "from": "a from=b",
    }  # fmt: skip
    for text in (
        "f(a=9**9**9)",
        "f(a=[x for x in y])",
        "f(a=lambda: 1)",
        "f(a=1 if b else 2)",
        "f(a={**b})",
        "f(a=1j)",
    ):
        with pytest.raises(CallSyntaxError):
            parse_calls(text)


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("None of my tools can do that.", 1, 1),
        ("", 1, 1),
        ("[]", 1, 1),
        ("{}", 1, 1),
        ("get.weather(city='Rome')", 0, 0),
        (tagged([("clock", {})]), 0, 0),
        (json_calls([("clock", {})]), 0, 0),
        ("unheard_of(x=1)", 0, 0),
        ("You could call clock(zone='UTC') for that.", 0, 1),
        ("<tool_call>{broken</tool_call>", 0, 1),
        ("<think>No tool fits", 0, 0),
    ],
)
@pytest.mark.parametrize("truth", [None, []])
def test_no_call_is_right(completion, strict, lenient, truth):
    verdict = verify(completion, truth)
    assert (verdict.score, verdict.parts["lenient"]) == (strict, lenient), verdict.detail


def test_any_call_is_right():
    assert verify("clock(zone='Mars')", None, any_call=True).score == 1
    assert verify("sundial(zone='Mars')", None, any_call=True).score == 0
    assert verify("It is five o'clock.", None, any_call=True).score == 0
    assert verify("I call clock(zone='Mars').", None, any_call=True).parts == {"strict": 0, "lenient": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"functions": None}, "functions=None"),
        ({"functions": [{"name": 3}]}, "functions={'name': 3}"),
        ({"functions": [{"name": "f", "parameters": {"required": [[]]}}]}, "functions="),
        ({"functions": [{"name": "f", "parameters": {"properties": [1]}}]}, "functions="),
        ({"ground_truth": "f"}, "ground_truth='f'"),
        ({"ground_truth": [{"clok": {}}]}, "did you mean 'clock'"),
        ({"ground_truth": [{"clock": {"zone": "UTC"}}]}, "accepted values"),
        ({"ground_truth": [{"clock": {}}], "any_call": True}, "any_call=True"),
        ({"any_call": "yes"}, "any_call='yes'"),
        ({"language": "perl"}, "language='perl'"),
    ],
)
def test_bad_rows(change, said):
    payload = {"functions": [CLOCK], "ground_truth": None} | change
    verdict = base.verify("tool_call", "", "", payload)
    assert (verdict.status, verdict.score) == ("error", None) and said in verdict.detail
    unknown = {"name": "f", "parameters": {"properties": {"a": {"type": "strin"}}}}
    verdict = verify("", [{"f": {"a": [1]}}], [unknown])
    assert verdict.status == "error" and "did you mean 'string'" in verdict.detail
    odd = {"name": "f", "parameters": {"properties": {"a": {"type": {"b": 1}}}, "required": ["a"]}}
    verdict = verify("", [{"f": {"a": [1]}}], [odd])
    assert verdict.status == "error" and "type={'b': 1}" in verdict.detail
    verdict = base.verify("tool_call", "", "", {"functions": [CLOCK]})
    assert verdict.status == "error" and "ground_truth is missing" in verdict.detail


@pytest.mark.parametrize(
    "completion",
    [
        "[" * 100_000,
        "f(" * 50_000,
        "get.weather(city=" + "[" * 500 + "]" * 500 + ")",
        "get.weather(city=" + "-" * 20_000 + "1)",
        "get.weather(city=" + "a" + ".a" * 40_000 + ")",
        '{"name": ' * 20_000,
        '<tool_call>{"name": "clock", "arguments": ' + '{"a": ' * 5_000 + "1" + "}" * 5_000 + "}</tool_call>",
        "<tool_call>" * 100_000,
        "clock(" * 10_000 + ")" * 10_000,
        "clock(zone='\x00')",
        "\x00\ud800clock()",
        "9" * 1_000_000,
        "get.weather(days=" + "9" * 50_000 + ")",
        "```\n" * 100_000,
        "x" * 10_000_000,
    ],
    ids=range(15),
)
def test_hostile_completions_get_a_verdict(completion):
    verdict = verify(completion, [{"clock": {"zone": ["UTC"]}}])
    assert verdict.score == 0 and verdict.seconds < 4
    assert verify(completion, None).score in (0, 1)


@pytest.mark.parametrize(
    ("read", "kind", "items", "text", "value"),
    [
        (read_java, "integer", None, "42", 42),
        (read_java, "long", None, "42L", 42),
        (read_java, "long", None, "42", "42"),
        (read_java, "float", None, "1.5f", 1.5),
        (read_java, "double", None, "-1.5e3", -1500.0),
        (read_java, "boolean", None, "true", True),
        (read_java, "boolean", None, "True", "True"),
        (read_java, "Array", "integer", "new int[]{1, 2}", [1, 2]),
        (read_java, "ArrayList", "long", "new ArrayList<Long>(Arrays.asList(101L, 202L))", [101, 202]),
        (read_java, "ArrayList", "String", 'new ArrayList<String>() {{ add("a, b"); add("c"); }}', ["a, b", "c"]),
        (read_java, "ArrayList", "any", 'new ArrayList<>(Arrays.asList("id", 42, true))', ["id", 42, True]),
        (read_java, "ArrayList", None, "new ArrayList<>()", []),
        (read_java, "HashMap", None, 'new HashMap<String, X>() {{ put("a", 1); put("b", "x"); }}', {"a": 1, "b": "x"}),
        (read_java, "HashMap", None, "settings", "settings"),
        (read_java, "any", None, "mapController", "mapController"),
        (read_javascript, "Bigint", None, "12n", 12),
        (read_javascript, "Boolean", None, "false", False),
        (read_javascript, "String", None, "'abc'", "abc"),
        (read_javascript, "array", "float", "[60, 30.5]", [60.0, 30.5]),
        (read_javascript, "array", None, "new Array(1, 'two', true)", [1, "two", True]),
        (read_javascript, "array", "array", "[[1, 2], [3]]", [[1, 2], [3]]),
        (read_javascript, "dict", None, "{a: 1, 'b: c': [true, {d: x}]}", {"a": 1, "b: c": [True, {"d": "x"}]}),
        (read_javascript, "dict", None, "{}", {}),
        (read_javascript, "dict", None, "config", "config"),
    ],
)  # fmt: skip
def test_literals_of_java_and_javascript(read, kind, items, text, value):
    result = read(text, {"type": kind} | ({"items": {"type": items}} if items else {}))
    assert result == value and type(result) is type(value)


def test_a_row_of_java_takes_literals_and_values():
    function = {"name": "f", "parameters": {"properties": {"ids": {"type": "ArrayList", "items": {"type": "long"}}}}}
    truth = [{"f": {"ids": [[1, 2]]}}]
    assert verify("f(ids='new ArrayList<Long>(Arrays.asList(1L, 2L))')", truth, [function]).score == 1
    assert verify("f(ids=[1, 2])", truth, [function]).score == 1
    assert verify("f(ids='[1, 2]')", truth, [function]).score == 0
    assert verify("f(ids='new int[]{1L, 2L}')", truth, [function], language="python").score == 0


def choose(accepted):
    """One accepted value, as a model would write it: the first of each list, also inside dictionaries."""
    value = next((each for each in accepted if each != ""), "")
    if isinstance(value, dict):
        return choose_entries(value)
    return (
        [choose_entries(each) if isinstance(each, dict) else each for each in value]
        if isinstance(value, list)
        else value
    )


def choose_entries(answer):
    entries = {key: each if isinstance(each, list) else [each] for key, each in answer.items()}
    return {key: choose(each) for key, each in entries.items() if "" not in each}


def make_calls(row):
    calls = []
    for item in row["ground_truth"]:
        ((name, answer),) = item.items()
        calls.append((name, {key: choose(each) for key, each in answer.items() if set(map(str, each)) != {""}}))
    return calls


def mutate(calls, row):
    """Calls that nobody accepts, one of each kind."""
    (name, arguments), *rest = calls
    yield [(name + "_", arguments), *rest]
    yield [*calls, calls[0]]
    yield rest
    yield [(name, arguments | {"invented": 1}), *rest]
    ((_, answer),) = row["ground_truth"][0].items()
    (known,) = [each["parameters"]["properties"] for each in row["function"] if each["name"] == name][:1]
    for key, accepted in answer.items():
        if accepted and key in arguments:
            yield [(name, arguments | {key: "no such value"}), *rest]
            yield [(name, arguments | {key: [["no such value"]]}), *rest]
            yield [(name, arguments | {key: -987654321}), *rest]
            if "" not in accepted and key in known:
                yield [(name, {k: v for k, v in arguments.items() if k != key}), *rest]


@pytest.mark.parametrize(
    "category",
    ["simple_python", "multiple", "parallel", "parallel_multiple", "simple_java", "simple_javascript", "live_simple",
     "live_multiple", "live_parallel", "live_parallel_multiple"],
)  # fmt: skip
def test_published_answers_are_right_and_mutated_ones_wrong(category):
    path = SHARED / f"{category}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    for number, row in enumerate(rows):
        payload = {"functions": row["function"], "ground_truth": row["ground_truth"]}
        calls = make_calls(row)
        for syntax in SYNTAXES:
            verdict = base.verify("tool_call", syntax(calls), "", payload)
            assert verdict.score == 1, (row["id"], syntax(calls), verdict.detail)
        for wrong in mutate(calls, row):
            verdict = base.verify("tool_call", SYNTAXES[number % 3](wrong), "", payload)
            assert verdict.score == 0, (row["id"], wrong)


@pytest.mark.parametrize("category", ["irrelevance", "live_irrelevance", "live_relevance"])
def test_rows_without_an_answer(category):
    path = SHARED / f"{category}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    wanted = category == "live_relevance"
    for row in rows:
        payload = {"functions": row["function"], "ground_truth": row["ground_truth"], "any_call": wanted}
        name = row["function"][0]["name"] if row["function"] else "anything"
        text = f"None of them fits: I can't help (I looked at {name}, too)."
        assert base.verify("tool_call", text, "", payload).score == (not wanted)
        for syntax in SYNTAXES:
            assert base.verify("tool_call", syntax([(name, {"a": 1})]), "", payload).score == wanted
