"""Dockerfiles without a container engine: their stages, and a stage carried out in a folder.

All stages that a stage is made of share one folder, since a virtual environment cannot be moved: a `COPY --from` only
checks that its source is there. Absolute paths in RUN lines are those of that folder.
"""

import fnmatch
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field

OWN_FOLDERS = re.compile(r"(?<![\w.:/])/(opt|src|cache)\b")
"""Folders that the Dockerfile makes: everything else at the top is the system's."""


@dataclass
class Stage:
    """A stage: the stage or image that it begins with, and its instructions, each a word and the rest of its line."""

    base: str
    instructions: list = field(default_factory=list)

    def all_of(self, word):
        return [rest for one, rest in self.instructions if one == word]


def read_dockerfile(path):
    """Return {name: `Stage`}, in the order of the file; the last one is what is built by default."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.M))
    stages, stage = {}, Stage("")
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(base)
        else:
            stage.instructions.append((word, rest))
    return stages


def values(rest):
    """Return the assignments of an ENV or ARG line."""
    return dict(part.partition("=")[::2] for part in rest.split())


def stages_below(stages, name):
    """Return the names of the stages that `name` is made of, itself last, each after those that it needs."""
    stage, found = stages[name], []
    copied = [match[1] for rest in stage.all_of("COPY") if (match := re.match(r"--from=(\S+)", rest))]
    for other in (stage.base, *copied):
        if other in stages:
            found += [one for one in stages_below(stages, other) if one not in found]
    return [*found, name]


def is_sent(path, rules):
    """Return True if .dockerignore's `rules` let a path (of a file in the context) through; the last one decides."""
    sent = True
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        names = [path, *path.parents][:-1]
        if any(fnmatch.fnmatch(str(one), pattern) or one.name == pattern for one in names):
            sent = rule.startswith("!")
    return sent


def context_files(root):
    """Return the files, relative to `root`, that a build would be sent."""
    lines = (root / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    tops = [path for path in root.iterdir() if is_sent(path.relative_to(root), rules)]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()]
    return sorted(file.relative_to(root) for file in files if is_sent(file.relative_to(root), rules))


def build(context, name, folder, environment):
    """Carry out a stage in `folder`, with all that it needs, and return the environment of its processes.

    RUN lines get `environment` and what the file sets. A line that fails raises an AssertionError with its output.
    """
    stages = read_dockerfile(context / "Dockerfile")
    left = {}
    for one in stages_below(stages, name):
        begun = left.get(stages[one].base, (environment, "/"))
        left[one] = _carry_out(stages[one], context, folder, *begun)
    return left[name][0]


def _carry_out(stage, context, folder, environment, place):
    """Return environment and working folder of the stage's end; `place` is the one that it begins in."""
    arguments, environment = {}, dict(environment)
    for word, rest in stage.instructions:
        if word == "WORKDIR":
            place = rest
            _inside(folder, place).mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            environment |= {key: OWN_FOLDERS.sub(rf"{folder}/\1", value) for key, value in values(rest).items()}
            environment["PATH"] = environment["PATH"].replace("$PATH", os.environ["PATH"])
        elif word == "ARG":
            arguments |= values(rest)
        elif word == "COPY":
            _copy(rest.split(), context, folder, place)
        elif word == "RUN":
            _run(rest, folder, place, environment | arguments)
        else:
            assert word in ("USER", "EXPOSE", "HEALTHCHECK", "CMD"), word
    return environment, place


def _inside(folder, path):
    return folder / path.lstrip("/")


def _copy(words, context, folder, place):
    *sources, target = (word for word in words if not word.startswith("--"))
    if any(word.startswith("--from=") for word in words):
        assert sources == [target] and _inside(folder, target).exists(), words
        return
    sent = context_files(context)
    for source in sources:
        wanted = [file for file in sent if source == "." or file.parts[0] == source]
        assert wanted, f"COPY {source}: .dockerignore leaves nothing of it"
        for file in wanted:
            copy = _inside(folder, place) / target / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(context / file, copy)


def _run(line, folder, place, environment):
    done = subprocess.run(
        ["sh", "-ec", OWN_FOLDERS.sub(rf"{folder}/\1", line)],
        cwd=_inside(folder, place),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"RUN {line}\n{done.stdout}"
