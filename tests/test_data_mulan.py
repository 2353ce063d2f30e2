"""Mulan's format: dense and sparse ARFF with an XML file of label names, all written here."""

import builtins

import numpy as np
import pytest
import torch
from _settings import new_seed

from pymtg.data import load, mulan
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError

XMLNS = "http://mulan.sourceforge.net/labels"


@pytest.fixture
def rng():
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return np.random.default_rng(seed)


def xml(*names):
    return f'<?xml version="1.0"?><labels xmlns="{XMLNS}">{"".join(f"<label name={n!r}/>" for n in names)}</labels>'


def arff(attributes, rows):
    declared = "\n".join(f"@attribute {a}" for a in attributes)
    return "\n".join(["@relation test", "", declared, "", "@data", *rows, ""])


def write(folder, stem="s", labels=("L",), **files):
    contents = {"xml": xml(*labels)} | files
    for part, text in contents.items():
        name = {"xml": f"{stem}.xml", "whole": f"{stem}.arff"}.get(part, f"{stem}-{part}.arff")
        (folder / name).write_text(text, encoding="utf-8")
    return folder / stem


def both(folder, attributes, train, test=None, labels=("L",)):
    return mulan(write(folder, labels=labels, train=arff(attributes, train), test=arff(attributes, test or train)))


def dense_rows(features, labels):
    return [",".join([*(f"{x:.6f}" for x in xs), *map(str, ys)]) for xs, ys in zip(features, labels, strict=True)]


def test_dense_is_standardised_by_the_training_rows(tmp_path, rng):
    x, y = rng.normal(3, 5, size=(40, 3)), rng.integers(2, size=(40, 2))
    attributes = ["a numeric", "b REAL", "c integer", "L1 {0,1}", "L2 {1,0}"]
    data = both(tmp_path, attributes, dense_rows(x[:25], y[:25]), dense_rows(x[25:], y[25:]), labels=("L2", "L1"))
    assert data.layout.names == ("L2", "L1")
    expected = (x - x[:25].mean(0)) / x[:25].std(0)
    np.testing.assert_allclose(data.train.inputs, expected[:25], atol=1e-4)
    np.testing.assert_allclose(data.test.inputs, expected[25:], atol=1e-4)
    np.testing.assert_array_equal(data.train.targets, y[:25, ::-1])
    np.testing.assert_array_equal(data.test.targets, y[25:, ::-1])
    assert data.train.targets.dtype == torch.uint8
    assert data.train.inputs.dtype == torch.float32
    assert (data.name, data.val, data.num_features) == ("s", None, 3)


def test_sparse_equals_the_dense_it_stands_for(tmp_path, rng):
    count, width = 30, 6
    x = rng.integers(1, 9, size=(count, width)) * (rng.random((count, width)) < 0.4)
    x[:, 0] = x[:, 0] > 0
    x[0, 1:] = 8
    y = rng.integers(2, size=(count, 2))
    table = np.column_stack([x, y])
    attributes = ["f0 {0,1}", *(f"f{i} numeric" for i in range(1, width)), "L1 {0,1}", "L2 numeric"]
    rows = ["{" + ",".join(f"{i} {v}" for i, v in enumerate(row) if v) + "}" for row in table]
    data = both(tmp_path, attributes, rows, labels=("L1", "L2"))
    np.testing.assert_array_equal(data.train.targets, y)
    np.testing.assert_allclose(data.train.inputs, np.column_stack([x[:, :1], x[:, 1:] / 8]), rtol=1e-6)


def test_absent_nominal_value_of_a_sparse_row_is_the_first_declared(tmp_path):
    data = both(tmp_path, ["a numeric", "L {1,0}"], ["{0 2}", "{1 0}", "{ }"])
    assert data.train.targets[:, 0].tolist() == [1, 0, 1]
    assert data.train.inputs[:, 0].tolist() == [1, 0, 0]


def test_quoted_escaped_and_tabbed_names(tmp_path):
    attributes = [
        "'a name' numeric",
        '"x{,}%" numeric',
        "m\\'usica {0,1}",
        "'it\\'s' {0,1}",
        "\tTAG_??\t{ 0, 1 }",
        "c{0,1}",
    ]
    names = ('"m\\\'usica"', '"it\'s"', "'TAG_??'", "'c'")
    text = f'<labels xmlns="{XMLNS}">' + "".join(f"<label name={n}></label>" for n in names) + "</labels>"
    table = (
        "@RELATION 'a: -C 4, b'\n"
        + "\n".join(f"@ATTRIBUTE {a}" for a in attributes)
        + "\n@DATA\n1,2,0,1,0,1\n3,4,1,0,1,1\n"
    )
    stem = write(tmp_path, xml=text, train=table.replace("\n", "\r\n"), test="\ufeff% comment\n" + table)
    data = mulan(stem)
    assert data.layout.names == ("m\\'usica", "it's", "TAG_??", "c")
    assert data.train.targets.tolist() == data.test.targets.tolist() == [[0, 1, 0, 1], [1, 0, 1, 1]]


def test_nested_labels_in_the_files_order(tmp_path):
    nested = '<label name="A"><label name="B"><label name="C"/></label></label><label name="D"/>'
    text = f'<labels xmlns="{XMLNS}">{nested}</labels>'
    data = mulan(
        write(
            tmp_path, xml=text, whole=arff(["D {0,1}", "C {0,1}", "x numeric", "B {0,1}", "A {0,1}"], ["1,0,5,0,1"] * 9)
        )
    )
    assert data.layout.names == ("A", "B", "C", "D")
    assert data.train.targets.unique(dim=0).tolist() == [[1, 0, 0, 1]]


def test_nominal_features(tmp_path):
    attributes = ["color {red,'dark blue',green}", "sex {m,f}", "one {x}", "L {0,1}"]
    train = ["red,m,x,0", "'dark blue',f,x,1", "green,f,x,1", "?,m,x,0"]
    data = both(tmp_path, attributes, train, ["green,?,x,0"])
    third = 1 / 3
    expected = [[1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 1, 0], [third, third, third, 0, 0]]
    np.testing.assert_allclose(data.train.inputs, expected, rtol=1e-6)
    np.testing.assert_allclose(data.test.inputs, [[0, 0, 1, 0.5, 0]])


def test_missing_values_and_labels(tmp_path):
    train = ["1,?,5,0,?", "3,?,5,?,1", "?,?,5,1,0"]
    data = both(
        tmp_path, ["a numeric", "b numeric", "c numeric", "L {0,1}", "M numeric"], train, ["?,7,6,0,0"], ("L", "M")
    )
    scale = np.sqrt(((1 - 2) ** 2 + (3 - 2) ** 2) / 2)
    np.testing.assert_allclose(data.train.inputs[:, 0], [-1 / scale, 1 / scale, 0])
    assert data.train.inputs[:, 1:].abs().max() == 0  # nothing known, and constant
    assert data.train.targets.tolist() == [[0, -100], [-100, 1], [1, 0]]
    assert data.train.targets.dtype == torch.int32
    assert torch.isfinite(data.test.inputs).all()


def test_missing_in_sparse_rows(tmp_path):
    data = both(tmp_path, ["a numeric", "L {0,1}"], ["{0 4, 1 ?}", "{0 ?}", "{1 1}"])
    assert data.train.inputs[:, 0].tolist() == [1, 0.5, 0]
    assert data.train.targets[:, 0].tolist() == [-100, 0, 1]


def test_a_single_file_is_split_by_the_seed(tmp_path, rng):
    x, y = rng.normal(size=(60, 2)), rng.integers(2, size=(60, 1))
    stem = write(tmp_path, whole=arff(["a numeric", "b numeric", "L {0,1}"], dense_rows(x, y)))
    seed = int(rng.integers(2**32))
    data, again = mulan(stem, seed, val_size=0.1), load(f"mulan:{stem}", seed, val_size=0.1)
    assert [len(part) for part in data.parts.values()] == [34, 20, 6]
    assert torch.equal(data.train.inputs, again.train.inputs)
    inputs = torch.cat([part.inputs for part in data.parts.values()])
    assert len(inputs.unique(dim=0)) == 60
    np.testing.assert_allclose(data.train.inputs.mean(0), 0, atol=1e-5)
    assert not torch.equal(mulan(stem, (seed + 1) % 2**32).test.inputs, data.test.inputs)


def test_validation_part_comes_out_of_the_training_file(tmp_path, rng):
    rows = dense_rows(rng.normal(size=(30, 1)), rng.integers(2, size=(30, 1)))
    stem = write(
        tmp_path, train=arff(["a numeric", "L {0,1}"], rows[:20]), test=arff(["a numeric", "L {0,1}"], rows[20:])
    )
    assert [len(part) for part in mulan(stem, val_size=0.25).parts.values()] == [15, 10, 5]
    with pytest.raises(InvalidArgumentError, match="val_size"):
        mulan(stem, val_size=1.0)
    with pytest.raises(InvalidTypeError, match="seed must be an integer"):
        mulan(stem, "0")


def test_older_files_in_latin_1(tmp_path):
    stem = write(tmp_path, labels=("é",))
    content = arff(["a numeric", "é {0,1}"], ["1,0", "2,1"]).encode("latin-1")
    for part in ("train", "test"):
        (tmp_path / f"s-{part}.arff").write_bytes(content)
    assert mulan(stem).layout.names == ("é",)


TABLE = arff(["a numeric", "L {0,1}"], ["1,0", "2,1"])


@pytest.mark.parametrize(
    ("files", "absent"),
    [
        ({}, ["s.xml"]),
        ({"xml": xml("L")}, ["s-train.arff", "s-test.arff", "s.arff"]),
        ({"xml": xml("L"), "train": TABLE}, ["s-test.arff"]),
        ({"xml": xml("L"), "test": TABLE, "whole": TABLE}, ["s-train.arff"]),
    ],
)
def test_missing_files_are_named(tmp_path, files, absent):
    stem = write(tmp_path, **files)
    if not files:
        (tmp_path / "s.xml").unlink()
    with pytest.raises(InvalidArgumentError, match="there is n") as caught:
        mulan(stem)
    for name in absent:
        assert str(tmp_path / name) in str(caught.value)


def test_stem_without_a_name():
    with pytest.raises(InvalidArgumentError, match="stem must end in a file's name"):
        load("mulan:/")


BAD_TABLES = {
    "label not there": (arff(["a numeric", "M {0,1}"], ["1,0"]), "no attribute for the label 'L'"),
    "no feature": (arff(["L {0,1}"], ["1"]), "no feature beside"),
    "label of another value": (arff(["a numeric", "L {0,1,2}"], ["1,0", "1,2"]), "'L' must be 0 or 1.*row 1 holds 2"),
    "label of words": (arff(["a numeric", "L {no,yes}"], ["1,no"]), "'L' must be 0 or 1.*holds no"),
    "regression": (arff(["a numeric", "L numeric"], ["1,0", "1,0.25"]), "regression.*row 1 holds 0.25"),
    "no rows": (arff(["a numeric", "L {0,1}"], []), "no rows"),
    "no data": ("@relation x\n@attribute a numeric\n", "Invalid layout"),
    "no relation": ("@attribute a numeric\n@data\n1\n", "line 1: Invalid layout"),
    "not arff": ("hello\nworld\n", "Invalid layout"),
    "empty": ("", "Invalid layout"),
    "short row": (
        arff(["a numeric", "L {0,1}"], ["1,0", "1"]),
        "line 8: the row does not have one value per attribute",
    ),
    "long row": (arff(["a numeric", "L {0,1}"], ["1,0,0"]), "line 7: the row does not"),
    "sparse index": (arff(["a numeric", "L {0,1}"], ["{5 1}"]), "line 7: the row does not"),
    "dense among sparse": (arff(["a numeric", "L {0,1}"], ["{0 1}", "1,0"]), "line 8: Invalid layout"),
    "not a number": (arff(["a numeric", "L {0,1}"], ["x%d,0"]), "line 7: Invalid numerical value"),
    "not an integer": (arff(["a integer", "L {0,1}"], ["x,0"]), "line 7: Invalid numerical value"),
    "sparse index of a missing value": (arff(["a numeric", "L {0,1}"], ["{5 ?}"]), "line 7: .* attribute 5; .* is 1"),
    "too large": (arff(["a numeric", "L {0,1}"], ["1e300,0"]), "'a' is infinite, or too large for float32, in row 0"),
    "too large in a sparse row": (arff(["a numeric", "L {0,1}"], ["{0 1e39}"]), "'a' is infinite, or too large"),
    "infinite": (arff(["a numeric", "L {0,1}"], ["inf,0"]), "'a' is infinite.* in row 0"),
    "undeclared value": (arff(["a numeric", "L {0,1}"], ["1,7"]), "line 7: Data value 7 not found"),
    "open quote": (arff(["a numeric", "L {0,1}"], ["'1,0"]), "line 7: .*rror parsing"),
    "twice": (arff(["a numeric", "'a' numeric", "L {0,1}"], ["1,1,0"]), "'a' is declared twice"),
    "string": (arff(["a string", "L {0,1}"], ["x,0"]), "line 3: the attribute 'a' is of type string"),
    "date": (arff(["a date 'yyyy'", "L {0,1}"], ["x,0"]), "'a' is of type date"),
    "no type": (arff(["a", "L {0,1}"], ["x,0"]), "line 3: an attribute needs"),
    "broken nominal": (arff(["a {x,y", "L {0,1}"], ["x,0"]), "line 3: Bad @ATTRIBUTE type"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(tmp_path, case):
    text, message = BAD_TABLES[case]
    stem = write(tmp_path, whole=text)
    with pytest.raises(FileFormatError, match=message) as caught:
        mulan(stem)
    assert str(tmp_path / "s.arff") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_files_that_declare_other_attributes(tmp_path):
    other = arff(["b numeric", "L {0,1}"], ["1,0"])
    with pytest.raises(FileFormatError, match=r"s-test\.arff must declare the same attributes"):
        mulan(write(tmp_path, train=TABLE, test=other))


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><labels><label name="&b;"/></labels>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<labels><label name='L'>", "not valid XML"),
        ("", "not valid XML"),
        (TABLE, "not valid XML"),
        ("<labels/>", "names no label"),
        ("<labels><label/></labels>", "without a name"),
        ("<labels><label name='L'/><label name='L'/></labels>", "'L' twice"),
        (BOMB, "document type"),
    ],
)
def test_bad_xml(tmp_path, text, message):
    with pytest.raises(FileFormatError, match=message) as caught:
        mulan(write(tmp_path, xml=text, whole=TABLE))
    assert str(tmp_path / "s.xml") in str(caught.value)


def test_without_liac_arff_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "arff":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pymtg\[mulan\]"):
        mulan(write(tmp_path, whole=TABLE))
