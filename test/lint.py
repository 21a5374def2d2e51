#!/usr/bin/env python3
"""Hold dims.c and dims.h to the house rules, and print the table of rooms.

    test/lint.py                 every rule; exit status 1 when one is broken
    test/lint.py --compile       the same, then clang's and cppcheck's opinion
    test/lint.py --room store    print one room: its contract, then its code

dims.c begins with a comment that lists the rooms (` *  3 text  purpose`). A
room begins with a banner and ends where the next one begins:

    /* ==== 3. text: borrowed spans, owned buffers, an arena ==============
     * prefix: span_ buf_ arena_   budget: 250
     * ...
     */

dims.h has a section a room, `/* ---- 3. text ----`, after `0. limits`.

Rules look at tokens, never at raw text, so that a brace in a string or a call
in a comment cannot mislead them. Code under #if is read in all its branches.
"""

import argparse
import bisect
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from typing import NamedTuple

OPENING_MAX = 120       # lines of the comment that dims.c begins with
BANNER_MAX = 25         # lines
FUNCTION_MAX = 60       # lines, from the name to the closing brace
DEPTH_MAX = 4           # the body is 0
PARAMS_MAX = 5
COLUMNS_MAX = 80
MUTABLE_MAX = 20        # file-scope and static local variables, not const
CODE_MAX = {"dims.c": 10000, "dims.h": 2000}    # no blanks, no comments
BUDGET_SLACK = 1.10

SYSTEM_ROOMS = set("""
    base log digest fs pool tls event hook ldap aws proxy conn job
    worker supervisor cli main""".split())

# What reaches the kernel: all but memory and threads. stdio and the resolver
# are here too, because they block.
SYSTEM_CALLS = set("""
    accept accept4 access bind chdir chmod chown chroot clock_gettime
    clock_nanosleep clone close close_range closedir connect copy_file_range
    creat daemon dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
    epoll_wait eventfd execl execle execlp execv execve execveat execvp execvpe
    faccessat fallocate fchdir fchmod fchmodat fchown fchownat fclose fcntl
    fdatasync fdopen fdopendir fflush fgets flock fopen fork fprintf fputs fread
    freeaddrinfo freopen fseek fstat fstatat fstatfs fstatvfs fsync ftruncate
    futimens fwrite getaddrinfo getegid geteuid getgid getgrnam getgrnam_r
    gethostname getline getnameinfo getpeername getpid getppid getpwnam
    getpwnam_r getpwuid getrandom getrlimit getrusage getsockname getsockopt
    gettimeofday getuid inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch ioctl isatty kill killpg lchown link linkat listen lockf
    lseek lstat madvise memfd_create mkdir mkdirat mkdtemp mkfifo mknod mkostemp
    mkstemp mlock mmap mount mprotect mremap msync munmap nanosleep nice open
    openat opendir openlog pause pclose perror pidfd_open pipe pipe2 poll popen
    posix_fadvise posix_fallocate posix_spawn posix_spawnp ppoll prctl pread
    preadv printf prlimit putchar puts pwrite pwritev raise read readahead
    readdir readlink readlinkat readv realpath recv recvfrom recvmmsg recvmsg
    remove rename renameat renameat2 rmdir scandir select send sendfile sendmmsg
    sendmsg sendto setegid seteuid setgid setgroups initgroups setitimer
    setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid
    setsockopt setuid shm_open shm_unlink shutdown sigaction sigprocmask
    signal signalfd sigsuspend sleep socket socketpair splice stat statfs
    statvfs statx symlink symlinkat sync sync_file_range syncfs syscall syslog
    system tcgetattr tcsetattr tee time timer_create timerfd_create
    timerfd_settime truncate umask uname unlink unlinkat unshare usleep utime
    utimensat utimes vdprintf dprintf vfork vfprintf vmsplice vprintf wait
    wait3 wait4 waitid waitpid write writev _exit""".split())

BANNED = {
    "strcpy": "copies without a limit",
    "strcat": "copies without a limit",
    "sprintf": "writes without a limit",
    "vsprintf": "writes without a limit",
    "gets": "reads without a limit",
    "strtok": "keeps hidden state",
    "atoi": "cannot tell an error",
    "atol": "cannot tell an error",
    "typedef": "structs keep their names",
}

KEYWORDS = set("""
    auto break case char const continue default do double else enum extern
    float for goto if inline int long register restrict return short signed
    sizeof static struct switch typedef union unsigned void volatile while
    _Alignas _Alignof _Atomic _Bool _Generic _Noreturn _Static_assert
    _Thread_local __attribute__ __typeof__ __thread static_assert""".split())
ATTRIBUTES = {"__attribute__", "_Alignas", "__declspec"}
ASSERTIONS = {"_Static_assert", "static_assert"}
NOT_TYPES = {"return", "case", "else", "goto", "sizeof", "do"}
CONTROLS = {"if", "for", "while", "switch"}
CLOSERS = {"(": ")", "[": "]", "{": "}"}


class Problem(NamedTuple):
    file: str
    line: int
    rule: str
    message: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.rule}: {self.message}"


# ---- tokens ---------------------------------------------------------------

class Token(NamedTuple):
    kind: str       # name number string char punct comment directive
    text: str
    line: int
    pos: int


PLAIN = r"""
    (?P<comment>/\*(?s:.*?)(?:\*/|\Z)|//[^\n]*)
  | (?P<string>"(?:\\(?s:.)|[^"\\\n])*")
  | (?P<char>'(?:\\(?s:.)|[^'\\\n])*')
  | (?P<name>[A-Za-z_]\w*)
  | (?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
  | (?P<skip>\\\n)
  | (?P<punct>->|\.\.\.|\#\#|[=!<>]=|[^\s\w])
"""
# A directive swallows its continuation lines, and comments in it, whole.
DIRECTIVE = r"""
    (?P<directive>^[ \t]*\#(?:\\\n|/\*(?s:.*?)\*/|//[^\n]*
        |"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[^\n])*)
  |
"""
IN_DIRECTIVE = re.compile(PLAIN, re.X)
IN_FILE = re.compile(DIRECTIVE + PLAIN, re.X | re.M)


def tokenize(pattern, text, line=1):
    newlines = [m.start() for m in re.finditer("\n", text)]
    return [Token(m.lastgroup, m.group().lstrip(" \t"),
                  line + bisect.bisect_left(newlines, m.start()), m.start())
            for m in pattern.finditer(text) if m.lastgroup != "skip"]


class Macro(NamedTuple):
    name: str
    line: int
    params: list    # None: not function-like
    body: list


def parse_macro(tokens):
    """The tokens of a #define, from its #."""
    name, rest = tokens[2], tokens[3:]
    params = None
    if rest and rest[0].text == "(" and \
            rest[0].pos == name.pos + len(name.text):
        close = next((i for i, t in enumerate(rest) if t.text == ")"), 0)
        params = [t.text for t in rest[1:close] if t.text != ","]
        rest = rest[close + 1:]
    return Macro(name.text, name.line, params, rest)


# ---- a file ---------------------------------------------------------------

class Function(NamedTuple):
    name: str
    line: int
    end: int
    params: int
    static: bool
    start: int      # tokens: of the head, of the body's braces
    open: int
    close: int


class Prototype(NamedTuple):
    name: str
    line: int
    static: bool
    start: int
    end: int


class Variable(NamedTuple):
    name: str
    line: int


class Source:
    """One file: its tokens, comments, macros and file-scope declarations."""

    def __init__(self, path, name):
        with open(path, encoding="utf-8", newline="") as f:
            self.text = f.read()
        self.name = name
        self.rows = self.text.split("\n")
        self.tokens, self.comments, self.macros = [], [], []
        self.functions, self.prototypes, self.variables = [], [], []
        self.problems = []
        self.code_lines, self.comment_lines = set(), set()
        for token in tokenize(IN_FILE, self.text):
            if token.kind == "directive":
                self.add_directive(token)
            else:
                self.add(token, self.tokens)
        self.comment_lines -= self.code_lines
        self.match = self.match_brackets()
        if self.match is not None:
            self.find_declarations()

    def add(self, token, into):
        if token.kind == "comment":
            for i, row in enumerate(token.text.split("\n")):
                if row.strip():
                    self.comment_lines.add(token.line + i)
            self.comments.append(token)
        else:
            self.code_lines.add(token.line)
            into.append(token)

    def add_directive(self, directive):
        inner = []
        for token in tokenize(IN_DIRECTIVE, directive.text, directive.line):
            self.add(token, inner)
        if len(inner) > 2 and inner[1].text == "define":
            self.macros.append(parse_macro(inner))

    def match_brackets(self):
        match, stack = {}, []
        for i, token in enumerate(self.tokens):
            if token.kind != "punct":
                continue
            if token.text in CLOSERS:
                stack.append(i)
            elif token.text in CLOSERS.values():
                opener = self.tokens[stack[-1]].text if stack else ""
                if CLOSERS.get(opener) != token.text:
                    return self.unbalanced(token)
                match[stack[-1]] = i
                stack.pop()
        return self.unbalanced(self.tokens[stack[-1]]) if stack else match

    def unbalanced(self, token):
        self.problems.append(Problem(
            self.name, token.line, "brackets", f"'{token.text}' has no "
            "partner (does each branch of an #if hold whole statements?)"))

    def find_declarations(self):
        i = start = 0
        while i < len(self.tokens):
            text = self.tokens[i].text
            if text == "{" and self.add_function(start, i):
                i = self.match[i]
                start = i + 1
            elif text in CLOSERS and self.tokens[i].kind == "punct":
                i = self.match[i]
            elif text == ";":
                self.add_declaration(start, i)
                start = i + 1
            i += 1

    def outline(self, start, end):
        """Indexes of a declaration's tokens outside brackets, attributes
        left out; an opening bracket stands for all that it holds."""
        out, i = [], start
        while i < end:
            text = self.tokens[i].text
            if text in ATTRIBUTES and i + 1 in self.match:
                i = self.match[i + 1] + 1
                continue
            out.append(i)
            i = self.match.get(i, i) + 1
        return out

    def declared_function(self, start, end):
        """Indexes of the name and the parameters' bracket, or None."""
        outline = self.outline(start, end)
        texts = [self.tokens[i].text for i in outline]
        if "=" in texts or (texts and texts[0] in ASSERTIONS):
            return None
        found = None
        for before, i in zip(outline, outline[1:]):
            name = self.tokens[before]
            if self.tokens[i].text == "(" and self.tokens[i + 1].text != "*" \
                    and name.kind == "name" and name.text not in KEYWORDS:
                found = (before, i)
        if found:
            return found
        # A function that returns a pointer to one: void (*f(int))(int)
        for i in outline:
            if self.tokens[i].text != "(":
                continue
            for j in range(i + 1, self.match[i]):
                if self.tokens[j].kind == "name" and j + 1 in self.match and \
                        self.tokens[j + 1].text == "(":
                    return j, j + 1
            break
        return None

    def is_static(self, start, end):
        return any(self.tokens[i].text == "static"
                   for i in self.outline(start, end))

    def add_function(self, start, brace):
        found = self.declared_function(start, brace)
        if not found:
            return False
        name, close = self.tokens[found[0]], self.match[brace]
        self.functions.append(Function(
            name.text, name.line, self.tokens[close].line,
            self.count_params(found[1]), self.is_static(start, brace), start,
            brace, close))
        for i in range(brace, close):
            if self.tokens[i].text == "static":
                end = i
                while self.tokens[end].text != ";":
                    end = self.match.get(end, end) + 1
                self.add_variables(i, end)
        return True

    def count_params(self, bracket):
        inner = [self.tokens[i].text
                 for i in self.outline(bracket + 1, self.match[bracket])]
        if inner in ([], ["void"]):
            return 0
        return inner.count(",") + 1 - inner.count("...")

    def add_declaration(self, start, end):
        found = self.declared_function(start, end)
        if found:
            name = self.tokens[found[0]]
            self.prototypes.append(Prototype(
                name.text, name.line, self.is_static(start, end), start, end))
        else:
            self.add_variables(start, end)

    def add_variables(self, start, end):
        """The variables of one declaration that can be assigned to."""
        parts, base = [[]], None
        for i in self.outline(start, end):
            if self.tokens[i].text == ",":
                parts.append([])
            else:
                parts[-1].append(i)
        for part in parts:
            texts = [self.tokens[i].text for i in part]
            if base is None and (not texts or "extern" in texts or
                                 texts[0] in ASSERTIONS | {"typedef"}):
                return
            if "=" in texts:
                part = part[:texts.index("=")]
            name, before = self.declared_variable(part)
            if name is None:
                return
            if base is None:
                base = [t for t in before if t != "*"]
                is_const = "const" in base
            if "*" in before:
                star = len(before) - before[::-1].index("*")
                mutable = "const" not in before[star:]
            else:
                mutable = not is_const
            if mutable:
                self.variables.append(Variable(name.text, name.line))

    def declared_variable(self, part):
        """Its name's token and the texts before it, or None where the
        declaration names nothing but a type."""
        before = []
        for n, i in enumerate(part):
            token = self.tokens[i]
            follows = [self.tokens[j].text for j in part[n + 1:n + 2]]
            if token.text == "(" and self.tokens[i + 1].text == "*":
                inner = self.outline(i + 1, self.match[i])
                return self.declared_variable(inner)
            if token.kind == "name" and token.text not in KEYWORDS and \
                    (not follows or follows[0] in ("[", ":")) and \
                    (not before or
                     before[-1] not in ("struct", "union", "enum")):
                return token, before
            before.append(token.text)
        return None, before

    # ---- nesting

    def depth(self, function):
        """How deep statements nest below the body, and the first line that
        is deeper than allowed. A body without braces is a level too: adding
        braces must not change the verdict."""
        self.deepest, self.too_deep = 0, None
        self.block(function.open, 0)
        return self.deepest, self.too_deep

    def block(self, brace, depth):
        i, close = brace + 1, self.match[brace]
        while i < close:
            bare = self.tokens[i].text == "{"
            i = self.statement(i, depth + bare)
        return close + 1

    def statement(self, i, depth):
        token, follows = self.tokens[i], self.tokens[i + 1].text
        self.deepest = max(self.deepest, depth)
        if depth > DEPTH_MAX and self.too_deep is None:
            self.too_deep = token.line
        if token.text == "{":
            return self.block(i, depth)
        if token.text in CONTROLS and follows == "(":
            i = self.statement(self.match[i + 1] + 1, depth + 1)
            if token.text == "if" and self.tokens[i].text == "else":
                chained = self.tokens[i + 1].text == "if"
                i = self.statement(i + 1, depth + (not chained))
            return i
        if token.text == "do":
            i = self.statement(i + 1, depth + 1)
        elif token.text == "case" or follows == ":":
            while self.tokens[i].text not in (":", "}"):
                i = self.match.get(i, i) + 1
            return i + (self.tokens[i].text == ":")
        elif token.kind == "name" and follows == "(" and \
                self.tokens[self.match[i + 1] + 1].text == "{":
            return self.statement(self.match[i + 1] + 1, depth + 1)
        while self.tokens[i].text not in (";", "}"):
            i = self.match.get(i, i) + 1
        return i + (self.tokens[i].text == ";")


# ---- rooms ----------------------------------------------------------------

class Room:
    """A room of dims.c, or a section of dims.h."""

    def __init__(self, number, name, comment, end):
        self.number, self.name = number, name
        self.line, self.end, self.comment = comment.line, end, comment.text
        self.prefixes, self.budget = [], 0

    def read_banner(self):
        found = re.search(r"^ \* prefix: +(\S.*?) +budget: +(\d+)$",
                          self.comment, re.M)
        if found:
            self.prefixes, self.budget = found[1].split(), int(found[2])

    def owns(self, function):
        return any(function == p or
                   p.endswith("_") and (function.startswith(p) or
                                        function == p[:-1])
                   for p in self.prefixes)


def split_rooms(source, pattern, mark, problems):
    rooms = []
    for comment in source.comments:
        if not comment.text.startswith(mark):
            continue
        first = comment.text.split("\n")[0]
        found = re.match(pattern, first)
        if not found:
            problems.append(Problem(source.name, comment.line, "banner",
                                    f"cannot be read: {first}"))
            continue
        if rooms:
            rooms[-1].end = comment.line - 1
        rooms.append(Room(int(found[1]), found[2], comment,
                          len(source.rows)))
    return rooms


class House:
    """dims.c and dims.h together, and every rule that needs both."""

    def __init__(self, root):
        self.root = root
        self.problems = []
        self.c = Source(os.path.join(root, "dims.c"), "dims.c")
        self.h = Source(os.path.join(root, "dims.h"), "dims.h")
        self.sources = (self.c, self.h)
        self.rooms = split_rooms(
            self.c, r"/\* ==== (\d+)\. (\w+): \S", "/* ====", self.problems)
        self.sections = split_rooms(
            self.h, r"/\* ---- (\d+)\. (\w+)\b", "/* ----", self.problems)
        self.by_name = {room.name: room for room in self.rooms}
        for room in self.rooms:
            room.read_banner()
        self.macros = {}        # name -> [(source, macro)]
        for source in (self.h, self.c):
            for macro in source.macros:
                self.macros.setdefault(macro.name, []).append((source, macro))
        self.home = {}          # function -> room
        for source in self.sources:
            for function in source.functions:
                room = self.room_at(source, function.line)
                if room:
                    self.home.setdefault(function.name, room)

    def problem(self, source, line, rule, message):
        self.problems.append(Problem(source.name, line, rule, message))

    def section_at(self, source, line):
        parts = self.rooms if source is self.c else self.sections
        i = bisect.bisect_right([p.line for p in parts], line)
        return parts[i - 1] if i else None

    def room_at(self, source, line):
        part = self.section_at(source, line)
        return part and self.by_name.get(part.name)

    def check(self):
        for source in self.sources:
            self.problems += source.problems
            self.check_text(source)
            self.check_size(source)
            self.check_words(source)
            for function in source.functions:
                self.check_function(source, function)
        self.check_contents()
        for room in self.rooms:
            self.check_banner(room)
        self.check_prefixes()
        self.check_budgets()
        self.check_prototypes()
        self.check_uses()
        self.check_log_tags()
        self.check_mutable()
        self.check_readme()
        order = {"dims.c": 0, "dims.h": 1}
        self.problems = sorted(set(self.problems), key=lambda p: (
            order.get(p.file, 2), p.file, p.line, p.rule, p.message))
        return self.problems

    # ---- lines and words

    def check_text(self, source):
        for number, row in enumerate(source.rows, 1):
            if len(row) > COLUMNS_MAX:
                self.problem(source, number, "columns",
                             f"{len(row)}, at most {COLUMNS_MAX}")
            if "\t" in row:
                self.problem(source, number, "tab", "indent with 4 spaces")
            if row != row.rstrip():
                self.problem(source, number, "blanks", "at the line's end")
            found = re.search(r"\b(TODO|FIXME|XXX)\b", row)
            if found:
                self.problem(source, number, "leftover", found[1])

    def check_size(self, source):
        code, limit = len(source.code_lines), CODE_MAX[source.name]
        if code > limit:
            self.problem(source, 1, "size",
                         f"{code} lines of code, at most {limit}")

    def check_words(self, source):
        for i, tokens in self.all_tokens(source):
            token = tokens[i]
            if token.text in BANNED and not is_member(tokens, i):
                self.problem(source, token.line, "banned",
                             f"{token.text}: {BANNED[token.text]}")
            if token.text in SYSTEM_CALLS and is_call(tokens, i):
                room = self.room_at(source, token.line)
                if room and room.name not in SYSTEM_ROOMS:
                    self.problem(source, token.line, "system",
                                 f"{token.text}() in room {room.name}")

    def all_tokens(self, source):
        """Every name in the code and in macros, as (index, tokens)."""
        for tokens in [source.tokens] + [m.body for m in source.macros]:
            for i, token in enumerate(tokens):
                if token.kind == "name":
                    yield i, tokens

    # ---- functions

    def check_function(self, source, function):
        lines = function.end - function.line + 1
        room = self.room_at(source, function.line)
        if lines > FUNCTION_MAX:
            self.problem(source, function.line, "length",
                         f"{function.name}: {lines} lines, "
                         f"at most {FUNCTION_MAX}")
        deepest, line = source.depth(function)
        if line is not None:
            self.problem(source, line, "depth", f"{function.name}: "
                         f"{deepest} levels, at most {DEPTH_MAX}")
        if function.params > PARAMS_MAX:
            self.problem(source, function.line, "parameters",
                         f"{function.name}: {function.params}, "
                         f"at most {PARAMS_MAX}")
        if room is None:
            self.problem(source, function.line, "prefix",
                         f"{function.name} is in no room")
        elif not room.owns(function.name):
            self.problem(source, function.line, "prefix",
                         f"{function.name} in room {room.name}, whose "
                         f"prefixes are: {' '.join(room.prefixes)}")
        if not function.static and function.name != "main" and not any(
                p.static and p.name == function.name
                for s in self.sources for p in s.prototypes):
            self.problem(source, function.line, "static",
                         f"{function.name} is visible outside")

    def check_prototypes(self):
        for proto in self.h.prototypes:
            section = self.section_at(self.h, proto.line)
            room = self.home.get(proto.name)
            if not proto.static:
                self.problem(self.h, proto.line, "static",
                             f"{proto.name} is visible outside")
            if room is None:
                self.problem(self.h, proto.line, "prototype",
                             f"{proto.name} is defined in no room")
            elif section is None or section.name != room.name:
                self.problem(self.h, proto.line, "prototype",
                             f"{proto.name} belongs to section "
                             f"{room.number}. {room.name}")

    def check_uses(self):
        declared = {p.name for p in self.h.prototypes}
        declared |= {f.name for f in self.h.functions}
        seen = set()
        for source, line, name in self.uses():
            user, owner = self.room_at(source, line), self.home[name]
            if user is None or user is owner:
                continue
            if owner.line > user.line:
                self.problem(source, line, "order", f"room {user.name} uses "
                             f"{name} of the later room {owner.name}")
            if name not in declared and (name, user.name) not in seen:
                seen.add((name, user.name))
                self.problem(source, line, "undeclared", f"room {user.name} "
                             f"uses {name} of room {owner.name}, which "
                             "dims.h does not declare")

    def uses(self):
        """Each mention of a house function, as (source, line, name)."""
        for source in self.sources:
            skip, local = self.not_uses(source)
            for i, tokens in self.all_tokens(source):
                token = tokens[i]
                if is_member(tokens, i):
                    continue
                if token.text in self.home:
                    if tokens is source.tokens and \
                            (i in skip or (i, token.text) in local):
                        continue
                    yield source, token.line, token.text
                elif token.text in self.macros and source is self.c:
                    for name in self.expand(tokens, i, token.line, ()):
                        yield source, token.line, name

    def not_uses(self, source):
        """Tokens that declare a function, and those of a local variable
        which has a function's name."""
        skip, local = set(), set()
        for proto in source.prototypes:
            skip.update(range(proto.start, proto.end))
        for function in source.functions:
            skip.update(range(function.start, function.open))
            names = set()
            for i in range(function.start, function.close):
                text = source.tokens[i].text
                before, after = source.tokens[i - 1], source.tokens[i + 1]
                if text in self.home and text != function.name and \
                        after.text in ("=", ";", ",", "[", ")") and \
                        (before.text == "*" or before.kind == "name" and
                         before.text not in NOT_TYPES):
                    names.add(text)
            if names:
                local.update((i, name) for name in names
                             for i in range(function.open, function.close))
        return skip, local

    def macro_at(self, name, line):
        """The macro in force at a line of dims.c: the last one defined above,
        else the header's."""
        above = [m for source, m in self.macros.get(name, ())
                 if source is self.h or m.line <= line]
        return above[-1] if above else None

    def expand(self, tokens, i, line, outer):
        """The functions that a macro's use brings in. Of a table's rows,
        TABLE(ROW), only those columns count that ROW looks at: counting the
        routes is no use of their handlers."""
        macro = self.macro_at(tokens[i].text, line)
        if macro is None or macro.name in outer:
            return set()
        body, skip, row = macro.body, set(), None
        if macro.params and i + 2 < len(tokens) and tokens[i + 1].text == "(":
            row = self.macro_at(tokens[i + 2].text, line)
        if row and row.params and "..." not in row.params:
            wanted = {t.text for t in row.body}
            for j, token in enumerate(body):
                if token.text == macro.params[0] and is_call(body, j):
                    for param, part in zip(row.params, arguments(body, j + 1)):
                        if param not in wanted:
                            skip.update(part)
        found = set()
        for j, token in enumerate(body):
            if token.kind != "name" or j in skip or is_member(body, j):
                continue
            if token.text in self.home:
                found.add(token.text)
            elif token.text in self.macros:
                found |= self.expand(body, j, line, outer + (macro.name,))
        return found

    # ---- the plan of the house

    def contents(self):
        """The list of rooms in the opening comment, as (number, name, line),
        or None."""
        opening = self.c.comments[0] if self.c.comments else None
        if opening is None or opening.line != 1 or \
                opening.text.startswith("/* ===="):
            self.problem(self.c, 1, "contents", "no comment opens the file")
            return None
        rows = opening.text.split("\n")
        if len(rows) > OPENING_MAX:
            self.problem(self.c, 1, "contents", f"the opening comment has "
                         f"{len(rows)} lines, at most {OPENING_MAX}")
        out = []
        for number, row in enumerate(rows, 1):
            found = re.match(r" \*  +(\d{1,2}) +([a-z]\w*)(?: |$)", row)
            if found:
                out.append((int(found[1]), found[2], number))
        return out

    def check_contents(self):
        for position, room in enumerate(self.rooms, 1):
            if room.number != position:
                self.problem(self.c, room.line, "contents", f"banner "
                             f"{room.number}. {room.name} is number "
                             f"{position}")
                break
        if not self.rooms:
            self.problem(self.c, 1, "contents", "no banner")
        contents = self.contents()
        if contents is not None:
            self.compare(self.c, contents, "the opening comment")
        if self.sections and self.sections[0].number != 0:
            self.problem(self.h, self.sections[0].line, "contents",
                         "the first section is not 0. limits")
        sections = [(s.number, s.name, s.line) for s in self.sections
                    if s.number]
        # Nothing can use the last room, so it needs no section.
        self.compare(self.h, sections, "dims.h", len(self.rooms) - 1)

    def compare(self, source, listed, where, at_least=None):
        """Report the first difference only: the rest follow from it."""
        rooms = [(room.number, room.name) for room in self.rooms]
        for (number, name, line), room in zip(listed, rooms):
            if (number, name) != room:
                self.problem(source, line, "contents", f"{where} has "
                             f"{number} {name} where the banners have "
                             f"{room[0]} {room[1]}")
                return
        if len(listed) > len(rooms):
            number, name, line = listed[len(rooms)]
            self.problem(source, line, "contents",
                         f"{number} {name} has no banner")
        elif len(listed) < (len(rooms) if at_least is None else at_least):
            number, name = rooms[len(listed)]
            self.problem(source, listed[-1][2] if listed else 1, "contents",
                         f"{number} {name} is missing in {where}")

    def check_banner(self, room):
        rows = room.comment.split("\n")
        if len(rows) > BANNER_MAX:
            self.problem(self.c, room.line, "banner", f"{room.name}: "
                         f"{len(rows)} lines, at most {BANNER_MAX}")
        if not room.prefixes:
            self.problem(self.c, room.line, "banner", f"{room.name} has no "
                         "line ` * prefix: NAME_ ...   budget: LINES`")

    def check_prefixes(self):
        owner = {}
        for room in self.rooms:
            for prefix in room.prefixes:
                other = owner.setdefault(prefix, room)
                if other is not room:
                    self.problem(self.c, room.line, "banner", f"prefix "
                                 f"{prefix} is room {other.name}'s")

    def code(self, room):
        return sum(room.line <= n <= room.end for n in self.c.code_lines)

    def check_budgets(self):
        for room in self.rooms:
            code = self.code(room)
            if room.budget and code > room.budget * BUDGET_SLACK:
                self.problem(self.c, room.line, "budget", f"{room.name}: "
                             f"{code} lines of code, budget {room.budget}")

    # ---- state, logs, options

    def check_mutable(self):
        variables = [(s, v) for s in self.sources for v in s.variables]
        if len(variables) > MUTABLE_MAX:
            source, last = variables[MUTABLE_MAX]
            self.problem(source, last.line, "mutable", f"{len(variables)} "
                         f"mutable variables, at most {MUTABLE_MAX}")

    def check_log_tags(self):
        """log_event(LEVEL, "room.word", ...): one tag, one spot."""
        first = {}
        tokens, match = self.c.tokens, self.c.match or {}
        declared, _ = self.not_uses(self.c)
        for i, token in enumerate(tokens):
            if token.text != "log_event" or i in declared or \
                    i + 1 not in match:
                continue
            args = list(arguments(tokens, i + 1))
            part = [tokens[j] for j in args[1]] if len(args) > 1 else []
            if len(part) != 1 or part[0].kind != "string":
                self.problem(self.c, token.line, "tag",
                             "the second argument is not one literal")
                continue
            tag = part[0].text[1:-1]
            if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+", tag):
                self.problem(self.c, token.line, "tag",
                             f'"{tag}" is not room.word')
            line = first.setdefault(tag, token.line)
            if line != token.line:
                self.problem(self.c, token.line, "tag",
                             f'"{tag}" is line {line}\'s')

    def check_readme(self):
        """The README's table of options names what CONF_OPTIONS names."""
        macro = next((m for m in self.h.macros if m.name == "CONF_OPTIONS"),
                     None)
        path = os.path.join(self.root, "README.md")
        if macro is None or not macro.params or not os.path.exists(path):
            return
        known = {}
        for i, token in enumerate(macro.body):
            if token.text == macro.params[0] and is_call(macro.body, i):
                name = macro.body[i + 2]
                known.setdefault(name.text.strip('"').replace("_", "-"),
                                 name.line)
        told = {}
        with open(path, encoding="utf-8") as f:
            for number, row in enumerate(f, 1):
                cell = re.match(r"\|\s*(`-.*?)\s*(?<!\\)\|", row)
                for name in re.findall(r"--([a-z][a-z0-9-]*)",
                                       cell[1] if cell else ""):
                    told.setdefault(name, number)
        for name in sorted(told.keys() - known.keys() - {"help", "version"}):
            self.problems.append(Problem("README.md", told[name], "options",
                                         f"--{name} is not in CONF_OPTIONS"))
        for name in sorted(known.keys() - told.keys() - {"help", "version"}):
            self.problem(self.h, known[name], "options",
                         f"--{name} is not in README.md's table")

    # ---- what is printed

    def table(self):
        form = "{:>3} {:<11}{:>6}{:>6}{:>7}{:>5}{:>5}{:>5}  {:<21}{:>5}"
        out = [form.format("", "room", "lines", "code", "budget", "fns",
                           "med", "max", "longest", "c/c")]
        for room in self.rooms:
            out.append(form.format(
                room.number, room.name, *self.measure(room.line, room.end,
                                                      room.budget or "-")))
        total = sum(room.budget for room in self.rooms)
        out.append(form.format("", "dims.c", *self.measure(
            1, len(self.c.rows), total)))
        header = len(self.h.code_lines)
        out.append(form.format(
            "", "dims.h", len(self.h.rows) - 1, header, CODE_MAX["dims.h"],
            len(self.h.functions), "", "", "",
            ratio(len(self.h.comment_lines), header)))
        return out + [""] + self.state()

    def measure(self, first, last, budget):
        inside = range(first, last + 1)
        lines = len(inside) - (last == len(self.c.rows) and
                               not self.c.rows[-1])
        code = sum(n in inside for n in self.c.code_lines)
        notes = sum(n in inside for n in self.c.comment_lines)
        lengths = [(f.end - f.line + 1, f.name) for f in self.c.functions
                   if f.line in inside]
        longest = max(lengths, default=("", ""))
        median = statistics.median_low([n for n, _ in lengths] or [0]) or ""
        return (lines, code, budget, len(lengths), median, longest[0],
                longest[1][:21], ratio(notes, code))

    def state(self):
        out = {}
        count = 0
        for source in self.sources:
            for variable in source.variables:
                room = self.section_at(source, variable.line)
                where = room.name if room else source.name
                out.setdefault(where, []).append(variable.name)
                count += 1
        return [f"mutable variables: {count} of {MUTABLE_MAX}"] + \
            [f"    {where}: {' '.join(names)}" for where, names in out.items()]

    def print_room(self, name):
        for source, parts in ((self.h, self.sections), (self.c, self.rooms)):
            for part in parts:
                if part.name == name:
                    print("\n".join(source.rows[part.line - 1:part.end]))
        return 0 if name in self.by_name else 1


def ratio(notes, code):
    return f"{notes / code:.2f}".lstrip("0") if code else "-"


def is_member(tokens, i):
    return i > 0 and tokens[i - 1].text in (".", "->", "struct", "union",
                                            "enum", "goto")


def is_call(tokens, i):
    return i + 1 < len(tokens) and tokens[i + 1].text == "(" and \
        not is_member(tokens, i)


def arguments(tokens, bracket):
    """Indexes of each argument's tokens, for the call at this bracket."""
    depth, part = 0, []
    for i in range(bracket, len(tokens)):
        text = tokens[i].text if tokens[i].kind == "punct" else ""
        depth += (text in CLOSERS) - (text in CLOSERS.values())
        if depth == 0 or depth == 1 and text == ",":
            yield part
            part = []
            if depth == 0:
                return
        elif i > bracket:
            part.append(i)


# ---- other checkers -------------------------------------------------------

CLANG = """clang -fsyntax-only -std=gnu11 -Wall -Wextra -Wshadow
    -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror""".split()
# Headers of libraries are not read: cppcheck knows libc, and the rest would
# take minutes. Naming the platform keeps it to one configuration.
CPPCHECK = """cppcheck --quiet --language=c --std=c11
    -D__GNUC__=12 -D__linux__ -D__x86_64__ -D_GNU_SOURCE
    --enable=warning,performance,portability
    --inline-suppr --error-exitcode=1
    --suppress=missingInclude --suppress=missingIncludeSystem
    --template={file}:{line}:\\ {id}:\\ {message}"""


def compile_checks(root, flags):
    status = 0
    defines = [f for f in flags if f.startswith("-D")]
    for command in (CLANG + flags, shlex.split(CPPCHECK) + defines):
        if not shutil.which(command[0]):
            print(f"lint: {command[0]} is not installed, skipped",
                  file=sys.stderr)
            continue
        status |= subprocess.run(command + ["dims.c"],
                                 cwd=root).returncode != 0
    return status


def main(argv=None):
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(
        description="Hold dims.c and dims.h to the house rules.")
    parser.add_argument("--root", default=here, help="where dims.c is")
    parser.add_argument("--room", metavar="NAME", help="print one room")
    parser.add_argument("--compile", action="store_true",
                        help="also run clang and cppcheck")
    parser.add_argument("--cflags", default="", metavar="FLAGS",
                        help="for clang: where the libraries' headers are")
    args = parser.parse_args(argv)
    try:
        house = House(args.root)
    except OSError as error:
        print(f"lint: {error}", file=sys.stderr)
        return 1
    if args.room:
        status = house.print_room(args.room)
        if status:
            print(f"lint: no room {args.room}", file=sys.stderr)
        return status
    problems = house.check()
    print("\n".join(house.table()), flush=True)
    for problem in problems:
        print(problem, flush=True)
    status = bool(problems)
    if args.compile:
        status |= compile_checks(args.root, shlex.split(args.cflags))
    return int(status)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)   # make lint | head
    sys.exit(main())
