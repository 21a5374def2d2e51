"""The linter itself: each rule fails on a small house that breaks it."""

import shutil
import time

import pytest

import lint

# Rooms text, http, hook and main; `@name@` marks where a test puts code.
C = """\
/* A house.
 *
 *  1 text  spans
 *  2 http  requests
 *  3 hook  scripts
 *  4 main  the door
 */
#include "dims.h"
@top@
/* ==== 1. text: spans =====================================================
 * prefix: span_ buf_   budget: 100
 */
@text@
static int span_of(int a)
{
    return a;
}

/* ==== 2. http: requests ==================================================
 * prefix: http_   budget: 100
 */
@http@
static int http_parse(int a)
{
    return span_of(a);
}

/* ==== 3. hook: scripts ===================================================
 * prefix: hook_ log_   budget: 100
 */
@hook@
static int hook_run(int a)
{
    return http_parse(a);
}

/* ==== 4. main: the door ==================================================
 * prefix: main   budget: 10
 */
int main(void)
{
    return hook_run(0);
}
"""
H = """\
/* The contents. */
/* ---- 0. limits ---- */
@limits@
/* ---- 1. text ---- */
static int span_of(int a);
@text@
/* ---- 2. http ---- */
static int http_parse(int a);
@http@
/* ---- 3. hook ---- */
static int hook_run(int a);
/* ---- 4. main ---- */
"""


@pytest.fixture
def house(tmp_path):
    """Builds a house and returns what is wrong with it, as (rule, text)."""
    def fill(template, parts, swap):
        for mark in ("top", "limits", "text", "http", "hook"):
            template = template.replace(f"@{mark}@", parts.get(mark, ""))
        for old, new in swap:
            assert old in template
            template = template.replace(old, new)
        return template

    def build(c=None, h=None, swap_c=(), swap_h=(), readme=None):
        (tmp_path / "dims.c").write_text(fill(C, c or {}, swap_c))
        (tmp_path / "dims.h").write_text(fill(H, h or {}, swap_h))
        if readme is not None:
            (tmp_path / "README.md").write_text(readme)
        build.house = lint.House(str(tmp_path))
        return [(p.rule, str(p)) for p in build.house.check()]

    build.root = tmp_path
    return build


def rules(problems):
    return [rule for rule, _ in problems]


def body(code):
    """A function of room http that holds `code`."""
    return {"http": "static int http_x(int a)\n{\n" + code +
                    "\n    return a;\n}\n"}


def test_a_clean_house(house, capsys):
    assert house() == []
    assert lint.main(["--root", str(house.root)]) == 0
    assert " http " in capsys.readouterr().out


def test_problems_are_reported_with_their_place(house, capsys):
    house(c=body("    atoi(0);"))
    assert lint.main(["--root", str(house.root)]) == 1
    assert "\ndims.c:24: banned: atoi" in capsys.readouterr().out


# ---- the plan

@pytest.mark.parametrize("old, new", [
    (" *  2 http  requests\n", ""),
    (" *  2 http ", " *  2 httq "),
    (" *  2 http ", " *  5 http "),
    (" *  4 main  the door\n", " *  4 main  the door\n *  5 attic  old\n"),
    ("/* A house.\n", "int a;\n/* A house.\n"),
    ("/* A house.\n", "/* A house.\n" + " * x\n" * 120),
    ("==== 2. http", "==== 7. http"),
])
def test_contents_equal_banners(house, old, new):
    assert "contents" in rules(house(swap_c=[(old, new)]))


@pytest.mark.parametrize("old, new", [
    ("---- 2. http", "---- 2. httq"),
    ("---- 2. http", "---- 3. http"),
    ("---- 0. limits", "---- 1. limits"),
    ("/* ---- 3. hook ---- */\n", ""),
])
def test_sections_equal_banners(house, old, new):
    assert "contents" in rules(house(swap_h=[(old, new)]))


def test_prose_in_the_opening_is_no_room(house):
    swap = [("/* A house.\n", "/* A house.\n * 404 is not a room\n"
             " * 9 either, and\n *  1. state no descriptor\n")]
    assert house(swap_c=swap) == []


@pytest.mark.parametrize("old, new", [
    (" * prefix: http_   budget: 100\n", ""),
    (" * prefix: http_   budget: 100\n", " * prefix: http_\n"),
    (" * prefix: http_ ", " * prefix: span_ http_ "),
    ("/* ==== 2. http: requests", "/* ==== http"),
    (" * prefix: http_", " * x\n" * 25 + " * prefix: http_"),
])
def test_banners(house, old, new):
    assert "banner" in rules(house(swap_c=[(old, new)]))


def test_prefixes(house):
    bad = {"http": "static int span_late(int a)\n{\n    return a;\n}\n"}
    assert rules(house(c=bad)) == ["prefix"]
    exact = {"http": "static int http(int a)\n{\n    return a;\n}\n"}
    assert house(c=exact) == []
    homeless = {"top": "static int http_x(void)\n{\n    return 0;\n}\n"}
    assert rules(house(c=homeless)) == ["prefix"]


@pytest.mark.parametrize("code", [
    "    a = hook_run(a);",
    "    int (*f)(int) = hook_run;",
    "    int (*f)(int) = &hook_run;",
    "    struct op op = {.run = hook_run};",
    "#define HTTP_RUN hook_run(1)",
])
def test_no_use_of_a_later_room(house, code):
    assert set(rules(house(c=body(code)))) == {"order"}


@pytest.mark.parametrize("code", [
    "    /* hook_run(a) */ // hook_run(a)",
    '    http_parse("hook_run(a)");',
    "    a = op.hook_run + op->hook_run;",
    "    struct op op = {.hook_run = a};",
    "    struct hook_run *hook_run = 0;\n    a = hook_run + 1;",
    "    int hook_run;\n    hook_run = 2;",
])
def test_what_is_no_use(house, code):
    assert house(c=body(code)) == []


TABLE = "#define ROUTES(X) \\\n    X(\"/\", hook_run) \\\n    X(\"/v2\", 0)\n"
NAMES = "#define ROW(path, run) path,\n"
CALLS = "#define ROW(path, run) {path, run},\n"
USE = "static const struct row table[] = {ROUTES(ROW)};\n"


def test_a_table_in_the_header_is_used_where_it_is_expanded(house):
    h = {"limits": TABLE}
    assert house(h=h) == []
    assert house(h=h, c={"http": NAMES + USE}) == []
    assert rules(house(h=h, c={"http": CALLS + USE})) == ["order"]
    both = {"http": NAMES + USE + "#undef ROW\n", "hook": CALLS + USE}
    assert house(h=h, c=both) == []


def test_other_rooms_see_only_what_the_header_declares(house):
    c = {"text": "static int span_in(int a)\n{\n    return a;\n}\n",
         "http": "static int http_y(int a)\n{\n    return span_in(a);\n}\n"}
    assert rules(house(c=c)) == ["undeclared"]
    assert house(c=c, h={"text": "static int span_in(int a);"}) == []


def test_prototypes_sit_in_their_section(house):
    c = {"text": "static int span_in(int a)\n{\n    return a;\n}\n"}
    assert rules(house(c=c, h={"http": "static int span_in(int a);"})) == \
        ["prototype"]
    assert rules(house(h={"http": "static int http_gone(int a);"})) == \
        ["prototype"]


def test_everything_is_static(house):
    c = {"http": "int http_y(int a)\n{\n    return a;\n}\n"}
    assert rules(house(c=c)) == ["static"]
    assert rules(house(swap_h=[("static int hook_run", "int hook_run")])) == \
        ["static"]


# ---- functions

def test_length(house):
    assert house(c=body("    a++;\n" * 55)) == []
    assert rules(house(c=body("    a++;\n" * 56))) == ["length"]


@pytest.mark.parametrize("deep, code", [
    (False, "if (a) { for (;;) { while (a) { do { a++; } while (a); } } }"),
    (True, "if (a) { for (;;) { while (a) { do { {a++;} } while (a); } } }"),
    (True, "if (a)\nfor (;;)\nwhile (a)\nif (a)\nif (a)\na++;"),
    (False, "if (a)\nfor (;;)\nwhile (a)\nif (a)\na++;"),
    (True, "if (a) {{{{ if (a) a++; }}}}"),
    (False, "if (a) a++; " + "else if (a) a++;\n" * 9 + "else a++;"),
    (False, "switch (a) { case 1: case '}': for (;;) { if (a) { a++; } }\n"
            "default: a--; }"),
    (True, "if (a) a++; else if (a) a++; else { {{{{ a++; }}}} }"),
    (True, "EACH(a, b) { EACH(a, b) { if (a) { if (a) { if (a) a++; }}}}"),
    (False, "int x[1][1][1][1][1] = {{{{{{1}}}}}};"),
    (False, "if (a) { if (a) { if (a) { if (a) { goto out; }}}}\nout:"),
])
def test_depth(house, deep, code):
    assert rules(house(c=body(code))) == (["depth"] if deep else [])


@pytest.mark.parametrize("many, params", [
    (False, "int a, int b, int c, int d, int e"),
    (True, "int a, int b, int c, int d, int e, int f"),
    (False, "int a, int b, int c, int d, const char *fmt, ..."),
    (False, "int a, int (*f)(int, int, int, int), int b[2]"),
])
def test_parameters(house, many, params):
    c = {"http": f"static int http_y({params})\n{{\n    return 0;\n}}\n"}
    assert rules(house(c=c)) == (["parameters"] if many else [])


@pytest.mark.parametrize("head", [
    "static void (*http_get(int a))(int)",
    "static __attribute__((noreturn)) void http_get(int a)",
    "static struct span http_get(struct span a)\n    __attribute__((pure))",
])
def test_names_of_functions(house, head):
    assert house(c={"http": head + "\n{\n}\n"}) == []
    names = [f.name for f in house.house.c.functions]
    assert "http_get" in names


# ---- lines and words

@pytest.mark.parametrize("rule, code", [
    ("columns", "    /* " + "x" * 80 + " */"),
    ("tab", "\ta++;"),
    ("blanks", "    a++; "),
    ("blanks", "    a++;\r"),
    ("leftover", "    /* TODO: more */"),
    ("leftover", "    // FIXME"),
    ("banned", "    strcpy(a, a);"),
    ("banned", "    typedef int number;"),
    ("banned", "#define HTTP_NUMBER(x) atoi(x)"),
    ("system", "    a = open(a, 0);"),
    ("system", "    printf(a);"),
    ("system", "#define HTTP_CLOSE(x) close(x)"),
    ("brackets", "    a = (1;"),
    ("brackets", "#if A\n    if (a) {\n#else\n    if (!a) {\n#endif\n    }"),
])
def test_lines_and_words(house, rule, code):
    assert rule in rules(house(c=body(code)))


@pytest.mark.parametrize("code", [
    '    a = mkname("XXXXXX");',
    "    struct stat stat;\n    a = stat.st_size;",
    "    a = ops->read(a) + ops.write(a);",
    "    int read = a, write = read;",
    "    /* open() and strcpy() */",
    '    a = log_text("close(");',
    "    a = '\"'; /* \" */ a = '\\'';",
])
def test_what_is_no_such_word(house, code):
    assert house(c=body(code)) == []


def test_system_calls_in_their_rooms(house):
    c = {"hook": "static int hook_y(int a)\n{\n    return open(a);\n}\n"}
    assert house(c=c) == []


# ---- sizes and state

def test_budget(house):
    fill = {"http": "static const int http_t[] = {\n" + "    1,\n" * 104 +
                    "};\n"}
    assert house(c=fill) == []
    fill["http"] += "static const int http_u[] = {\n    1\n};\n"
    assert rules(house(c=fill)) == ["budget"]
    fill["http"] = "/*\n" + " * x\n" * 200 + " */\n" + "\n" * 200
    assert house(c=fill) == []


def test_size(house, monkeypatch):
    monkeypatch.setitem(lint.CODE_MAX, "dims.h", 3)
    assert house() == []
    monkeypatch.setitem(lint.CODE_MAX, "dims.h", 2)
    assert rules(house()) == ["size"]


@pytest.mark.parametrize("count, code", [
    (1, "static int http_a;"),
    (2, "static int http_a = 1, http_b[3];"),
    (1, "static const char *http_a;"),
    (1, "static struct {\n    int a;\n} http_a;"),
    (1, "static void (*http_a)(int a);"),
    (1, "static struct span (*http_a)(int a);"),
    (1, "static _Thread_local struct span *http_a = 0;"),
    (1, "static char http_a[] __attribute__((aligned(8)));"),
    (0, "static const char *const http_a[] = {\"a\", \"b\"};"),
    (0, "static const int http_a = 1, http_b = 2;"),
    (0, "static void (*const http_a[])(int) = {0};"),
    (0, "struct http_a;\nstruct http_b {\n    int a, *b;\n};"),
    (0, "enum http_a {\n    A, B\n};"),
    (0, "extern char **environ;"),
    (0, "_Static_assert(sizeof(int) == 4, \"int\");"),
    (1, "static int http_x(int a)\n{\n    static int http_a;\n"
        "    static const int http_b[] = {1};\n    return a;\n}"),
])
def test_mutable_variables(house, monkeypatch, count, code):
    monkeypatch.setattr(lint, "MUTABLE_MAX", 0)
    assert rules(house(c={"http": code})) == (["mutable"] if count else [])
    names = [v.name for v in house.house.c.variables]
    assert names == ["http_a", "http_b"][:count]


@pytest.mark.parametrize("bad, calls", [
    (False, 'log_event(1, "http.bad", 0); log_event(1, "http.worse", 0);'),
    (True, 'log_event(1, "http.bad", 0);\nlog_event(2, "http.bad", 0);'),
    (True, 'log_event(1, "bad", 0);'),
    (True, "log_event(1, tag, 0);"),
    (False, 'log_event(f(1, 2), "http.bad", "k", "http.bad");'),
])
def test_log_tags(house, bad, calls):
    assert rules(house(c=body(calls))) == (["tag"] if bad else [])


# ---- the README

OPTIONS = """\
#define CONF_OPTIONS(X) \\
    X(port, 'p', "N", LIST, "", "port, see X(none)") \\
    X(log_level, 0, "LEVEL", CHOICE("a|b"), "info", \\
      "how much")
"""
README = "| option | |\n|---|---|\n| `-p, --port N` | `--no-option` |\n"


def test_options_of_the_readme(house):
    h = {"limits": OPTIONS}
    told = README + "| `--log-level a\\|b` | x |\n| `--help` | |\n"
    assert house(h=h, readme=told) == []
    assert house(h=h, readme=README)[0][1] == \
        "dims.h:5: options: --log-level is not in README.md's table"
    assert house(h=h, readme=told + "| `--quick` | |\n")[0][1] == \
        "README.md:6: options: --quick is not in CONF_OPTIONS"


# ---- the program

def test_one_room(house, capsys):
    house()
    assert lint.main(["--root", str(house.root), "--room", "http"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("/* ---- 2. http") and "return span_of(a)" in out
    assert "hook" not in out
    assert lint.main(["--root", str(house.root), "--room", "attic"]) == 1


def test_without_a_house(tmp_path, capsys):
    assert lint.main(["--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("lint: ")


@pytest.mark.skipif(not shutil.which("clang"), reason="needs clang")
def test_compile(house, capfd):
    house()
    assert lint.main(["--root", str(house.root), "--compile"]) == 0
    house(c=body("    int b;"))
    assert lint.main(["--root", str(house.root), "--compile"]) == 1
    assert "unused variable" in capfd.readouterr().err


@pytest.mark.skipif(not shutil.which("cppcheck"), reason="needs cppcheck")
def test_cppcheck(house, capfd):
    house(c=body("    int *b = 0;\n    a = *b;"))
    assert lint.main(["--root", str(house.root), "--compile"]) == 1
    assert "nullPointer" in capfd.readouterr().err


def test_ten_thousand_lines_in_three_seconds(house):
    one = "static int http_{}(int a)\n{{\n" + "    a = span_of(a + 1);\n" * 20 \
        + "    return a;\n}}\n"
    start = time.process_time()
    problems = house(c={"http": "".join(map(one.format, range(400)))})
    assert time.process_time() - start < 3
    assert rules(problems) == ["budget"]
