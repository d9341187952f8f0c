import pandas as pd
import pytest

from featcache.errors import DataError
from featcache.images.sources import open_images


@pytest.fixture
def listed(tmp_path):
    """Write a table beside three image files, and open it."""
    for name in ("a.png", "sub/b c.png", "é,1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    def write(text, name="list.csv", encoding="utf-8", **options):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return open_images(tmp_path / name, cache=None, **options)

    return write


def test_columns_become_the_manifest(listed):
    images = listed('path,label,split,group,age\na.png,x,Train,p1,3\n"é,1.png",y,,p2,4\n')
    assert images.name == "list"
    assert images.ids.tolist() == ["a.png", "é,1.png"]
    assert images.labels.tolist() == ["x", "y"]
    assert images.split.tolist() == ["train", ""]
    assert images.groups.tolist() == ["p1", "p2"]
    assert images.read(1) == "é,1.png".encode()


def test_only_path_and_label_are_needed(listed):
    images = listed("label,path\nx,sub/b c.png\n")
    assert images.split.tolist() == images.groups.tolist() == [""]


def test_tsv(listed):
    assert listed("path\tlabel\né,1.png\tx\n", "list.tsv").labels.tolist() == ["x"]


def test_byte_order_mark_is_no_part_of_the_first_column(listed):
    assert len(listed("path,label\na.png,x\n", encoding="utf-8-sig")) == 1


@pytest.mark.parametrize("label", ["NA", "null", "nan", "None", "007", "1.0", "true", "N/A"])
def test_labels_stay_as_they_are_written(listed, label):
    assert listed(f"path,label\na.png,{label}\n").labels.tolist() == [label]


def test_group_option_names_a_column(listed):
    text = "path,label,group,patient\na.png,x,g1,p1\n"
    assert listed(text).groups.tolist() == ["g1"]
    assert listed(text, group="patient").groups.tolist() == ["p1"]
    with pytest.raises(DataError, match=r"no column 'patent'.*\n.*Did you mean patient"):
        listed(text, group="patent")


def test_data_root(listed, tmp_path):
    (tmp_path / "lists").mkdir()
    images = listed("path,label\n./a.png,x\n", "lists/l.csv", data_root=tmp_path)
    assert images.ids.tolist() == ["a.png"]


def test_absolute_paths(listed, tmp_path):
    assert listed(f"path,label\n{tmp_path}/a.png,x\n").read(0) == b"a.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", r"no column 'path'\n.*It has: file, label"),
        ("path,class\na.png,x\n", r"no column 'label'\n.*It has: path, class"),
        ("path,label\nz1.png,x\nz2.png,x\nz3.png,x\nz4.png,x\na.png,x\n",
         r"4 of 5 image files .*: z1\.png, z2\.png, z3\.png, …\n.*--data-root"),
        ("path,label\na.png,x\n./a.png,y\n", r"lists 1 image twice, for instance a\.png"),
        ("path,label\na.png,x\nsub/b c.png,\n", "1 row without a path or a label .*line 3"),
        ("path,label\n ,x\n", "1 row without a path"),
        ("path,label,split\na.png,x,training\nsub/b c.png,x,holdout\n", "'holdout' is no split"),
        ("path,label\na.png,x,1\n", "more cells than its header"),
        ("path,label\na.png,x,\n", "more cells than its header"),
        ("path,label\na.png,x\nsub/b c.png,y,z\n", "can't be read as a table"),
        ("path,label\n", "holds no images"),
        ("", "can't be read as a table"),
    ],
)  # fmt: skip
def test_tables_that_can_not_be_used(listed, text, message):
    with pytest.raises(DataError, match=message):
        listed(text)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("path,label\na.png,é\n", "latin-1"), ("path,label\na.png,x\n", "utf-16-le")],
)
def test_a_table_in_another_encoding_is_refused(listed, text, encoding):
    with pytest.raises(DataError, match="can't be read as a table: its text is not UTF-8") as error:
        listed(text, encoding=encoding)
    assert "Save it as UTF-8" in error.value.remedy


@pytest.mark.parametrize("separator", [";", "\t", ","])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_the_header_says_what_separates_the_cells(listed, separator, name):
    images = listed('"path",label,split\n"é,1.png",a b,test\n'.replace(",l", f"{separator}l")
                    .replace(",s", f"{separator}s").replace(",a", f"{separator}a")
                    .replace(",t", f"{separator}t"), name)  # fmt: skip
    assert images.ids.tolist() == ["é,1.png"]
    assert (images.labels.tolist(), images.split.tolist()) == (["a b"], ["test"])


def test_a_semicolon_in_a_column_s_name_separates_nothing(listed):
    assert listed("path,label,a;b\na.png,x;y,1\n").labels.tolist() == ["x;y"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_excel_s_unicode_text_is_read(listed, encoding):
    images = listed("path\tlabel\né,1.png\tä\n", encoding=encoding)
    assert (images.ids.tolist(), images.labels.tolist()) == (["é,1.png"], ["ä"])


def test_parquet_without_pyarrow_names_the_pip_line(listed, monkeypatch):
    def absent(path):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", absent)
    with pytest.raises(DataError, match=r"pip install .*featcache\[parquet\]"):
        listed("", "list.parquet")


@pytest.mark.filterwarnings("error")
def test_parquet_columns_of_any_type(listed, monkeypatch):
    frame = pd.DataFrame(
        {
            "path": ["a.png", "sub/b c.png"],
            "label": pd.Categorical(["x", "y"]),
            "split": pd.Categorical(["train", None]),
            "group": [1, 2],
            "note": [0.5, None],
        },
        index=["first", "second"],
    )
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    images = listed("", "list.parquet")
    assert images.labels.tolist() == ["x", "y"]
    assert images.split.tolist() == ["train", ""]
    assert images.groups.tolist() == ["1", "2"]


def test_parquet(listed, tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"path": ["a.png"], "label": [3]}).to_parquet(tmp_path / "x.parquet")
    assert open_images(tmp_path / "x.parquet", cache=None).labels.tolist() == ["3"]
