"""Types and inline functions of one name have one definition: the linker keeps one of two destructors, for the objects of both."""
import collections
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMESPACE = re.compile(r"^(?:inline )?namespace ([\w:]*)\s*\{")
TYPE = re.compile(r"^(?:struct|class|union|enum class|enum)\s+(\w+)\b(?!::)[^;]*\{")
INLINE = re.compile(r"^(?:template <.*>\s*)?inline [\w:<>&* ]+?(\w+)\(")


def definitions(files):
    """(name with its namespaces) -> the files that define it; what is in an anonymous namespace is its file's own."""
    found = collections.defaultdict(set)
    for path in files:
        spaces = []
        for line in path.read_text().splitlines():
            if match := NAMESPACE.match(line):
                spaces.append(match.group(1))
            elif re.match(r"^\}\s*// namespace", line):
                spaces.pop()
            elif "" not in spaces and (match := TYPE.match(line) or INLINE.match(line)):
                found["::".join([*spaces, match.group(1)])].add(path)
    return found


def test_definitions_are_seen(tmp_path):
    for name in ("a.h", "b.h"):
        (tmp_path / name).write_text("namespace x {\nstruct Twice {\n  int a;\n};\nstruct Forward;\nnamespace {\nstruct Own {\n};\n}  // namespace\n}  // namespace x\n")
    assert {name: len(files) for name, files in definitions(sorted(tmp_path.iterdir())).items()} == {"x::Twice": 2}


def test_names_have_one_definition():
    files = [path for pattern in ("*.h", "*.cc") for path in sorted((ROOT / "millrace").rglob(pattern)) if not path.name.endswith(("_test.cc", "_bench.cc"))]
    assert len(files) > 200
    twice = {name: sorted(str(path.relative_to(ROOT)) for path in paths) for name, paths in definitions(files).items() if len(paths) > 1}
    assert not twice
