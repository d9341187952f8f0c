import pandas as pd
import pytest

from featcache.errors import DataError, UnknownName
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


def test_the_columns_names_may_be_in_any_case(listed):
    images = listed(" Path ;LABEL;Split;Group\na.png;x;TRAIN;p1\n")
    assert (images.labels.tolist(), images.split.tolist()) == (["x"], ["train"])
    assert images.groups.tolist() == ["p1"]
    assert listed("Path,label,PATH2\na.png,x,y\n").labels.tolist() == ["x"]
    with pytest.raises(DataError, match=r"several columns for 'label': 'Label', 'LABEL'\n.*--col"):
        listed("path,Label,LABEL\na.png,x,y\n")


def test_columns_names_what_is_called_otherwise(listed):
    text = "File Name,Class,label,fold,who\na.png,x,1,test,p\nsub/b c.png,y,2,train,q\n"
    columns = {"path": "file name", "label": "Class", "split": "fold", "group": "who"}
    images = listed(text, columns=columns)
    assert images.labels.tolist() == ["x", "y"]
    assert images.split.tolist() == ["test", "train"]
    assert images.groups.tolist() == ["p", "q"]
    assert images.options == ("--columns", "path=file name,label=Class,split=fold,group=who")
    with pytest.raises(DataError, match=r"no column 'Clas'\n.*Did you mean Class") as error:
        listed("File,Class\na.png,x\n", columns={"path": "File", "label": "Clas"})
    assert error.value.exit_code == 2
    with pytest.raises(UnknownName, match=r"'lable'\n.*label"):
        listed("path,label\na.png,x\n", columns={"lable": "label"})
    with pytest.raises(DataError, match=r"no column 'path'\n.*--columns path=NAME"):
        listed("File,label\na.png,x\n")


def test_paths_written_on_windows(listed, tmp_path):
    assert listed("path,label\nsub\\b c.png,x\n.\\a.png,y\n").ids.tolist() == [
        "sub/b c.png",
        "a.png",
    ]
    (tmp_path / "odd\\name.png").write_bytes(b"odd")  # a name may have such a sign
    assert listed("path,label\nodd\\name.png,x\n").ids.tolist() == ["odd\\name.png"]


def test_missing_files_are_left_out_and_remembered(listed, caplog):
    images = listed("path,label,split,group\nz.png,x,train,p\na.png,y,test,q\n")
    assert (images.ids.tolist(), images.labels.tolist()) == (["a.png"], ["y"])
    assert (images.split.tolist(), images.groups.tolist()) == (["test"], ["q"])
    assert images.absent == ("z.png",)
    assert "1 of 2 image files not below" in caplog.text
    assert "--data-root" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.csv", "label,name\n0,Cat\n1,dog\n"),
        ("map.csv", "0,Cat\n1,dog\n"),
        ("map.tsv", "0\tCat\n1\tdog\n"),
        ("map.json", '{"0": "Cat", "1": "dog"}'),
    ],
)
def test_a_class_map_gives_readable_names(listed, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    images = listed("path,label\na.png,1\nsub/b c.png,0\n", class_map=tmp_path / name)
    assert images.labels.tolist() == ["dog", "Cat"]
    assert images.options == ("--class-map", str(tmp_path / name))


def test_class_maps_that_can_not_be_used(listed, tmp_path, caplog):
    text, file = "path,label\na.png,1\nsub/b c.png,0\n", tmp_path / "map.csv"
    file.write_text("1,dog\n")
    assert listed(text, class_map=file).labels.tolist() == ["dog", "0"]
    assert "has no name for 1 class: 0" in caplog.text
    for content, message in (
        ("a,b,c\n", "is no class map"),
        ("7,x\n", "names none of the classes"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            listed(text, class_map=file)
    with pytest.raises(DataError, match=r"no class map .*\n.*Did you mean .*map\.csv"):
        listed(text, class_map=tmp_path / "mapp.csv")


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
        ("file; Label\na.png;x\n", r"no column 'path'\n.*It has: file, Label\. Or say"),
        ("path,class\na.png,x\n", r"no column 'label'\n.*It has: path, class"),
        ("path,label\nz1.png,x\nz2.png,x\nz3.png,x\nz4.png,x\n",
         r"4 of 4 image files .*: z1\.png, z2\.png, z3\.png, …\n.*--data-root"),
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
