"""ImageNet-LT, Places-LT and iNaturalist 2018 from their published lists."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lfm.config.schema import DataConfig
from lfm.data.sources.base import TEST, TRAIN, VAL, Source
from lfm.data.sources.class_names import named
from lfm.data.sources.downloads import HELP, where_to_put
from lfm.data.sources.inaturalist import load_inaturalist2018
from lfm.data.sources.split_lists import imagenet_names, load_imagenet_lt, load_places_lt
from lfm.errors import InputError
from tests.split_list_files import S3, Loader, Rows, touch, write_list


def coco(rows: Rows, names: dict[int, str]) -> dict[str, Any]:
    """The JSON of iNaturalist; images are numbered from 7, annotations stand in the reverse order."""
    return {
        "images": [{"id": 7 + i, "file_name": image} for i, (image, _) in enumerate(rows)],
        "annotations": [{"id": i, "image_id": 7 + i, "category_id": k} for i, (_, k) in enumerate(rows)][::-1],
        "categories": [{"id": k, "name": name} for k, name in names.items()],
    }


# --- ImageNet-LT ---


def test_imagenet_names_are_clips() -> None:
    names = imagenet_names()
    assert (len(names), names[0], names[1], names[999]) == (1000, "tench", "goldfish", "toilet paper")
    assert {name for name, count in Counter(names).items() if count > 1} == {"missile", "sunglasses"}


def small_imagenet(folder: Path) -> Source:
    write_list(folder / "ImageNet_LT_train.txt", [("train/a b.JPEG", 3), ("train/c.JPEG", 0)])
    write_list(folder / "ImageNet_LT_val.txt", [("train/d.JPEG", 0)])
    write_list(folder / "ImageNet_LT_test.txt", [("val/e.JPEG", 3)])
    return load_imagenet_lt(DataConfig(source=str(folder), verify=False))


def test_images_are_looked_for_beside_the_lists_and_read(tmp_path: Path) -> None:
    touch(tmp_path, "train/a b.JPEG", "train/c.JPEG", "train/d.JPEG", "val/e.JPEG")
    source = small_imagenet(tmp_path)
    assert [source.images.read(i) for i in range(4)] == [
        b"train/a b.JPEG",
        b"train/c.JPEG",
        b"train/d.JPEG",
        b"val/e.JPEG",
    ]
    assert source.label_N.tolist() == [3, 0, 0, 3]
    assert source.split_N.tolist() == [TRAIN, TRAIN, VAL, TEST]
    (tmp_path / "val/e.JPEG").unlink()
    with pytest.raises(InputError, match=rf"1 of 4 listed images is missing: {tmp_path}/val/e\.JPEG;"):
        small_imagenet(tmp_path)


def test_a_test_image_among_the_training_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/a b.JPEG", "train/c.JPEG", "train/d.JPEG", "val/e.JPEG")
    small_imagenet(tmp_path)
    write_list(tmp_path / "ImageNet_LT_test.txt", [("train/c.JPEG", 3)])
    with pytest.raises(
        InputError, match=r"train/c\.JPEG stands in ImageNet_LT_train\.txt and in ImageNet_LT_test\.txt"
    ):
        load_imagenet_lt(DataConfig(source=str(tmp_path), verify=False))


@pytest.mark.parametrize(
    ("loader", "files", "folder"),
    [
        (load_imagenet_lt, ["ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt"], "imagenet-lt"),
        (load_places_lt, ["Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt"], "places-lt"),
        (load_inaturalist2018, ["train2018.json", "val2018.json"], "inaturalist2018"),
    ],
)
def test_missing_lists_say_what_to_put_where(loader: Loader, files: list[str], folder: str, home: Path) -> None:
    place = home / "downloads" / folder
    with pytest.raises(InputError) as error:
        loader(DataConfig())
    assert str(error.value).startswith(f"{place} has no {' and no '.join(files)}; put {files[0]}")
    assert f"into {place}, or set data.source" in str(error.value) and "data.images" in str(error.value)
    place.mkdir(parents=True)
    (place / files[0]).touch()
    with pytest.raises(InputError, match=rf"has no {' and no '.join(files[1:])}; put"):
        loader(DataConfig(source=str(place)))


def test_help_for_every_data_set(home: Path) -> None:
    from lfm.data.sources.registry import DATASETS

    assert set(HELP) == set(DATASETS) - {"custom"}
    for name in HELP:
        assert where_to_put(name).startswith("put ") and str(home / "downloads") in where_to_put(name)
    with pytest.raises(InputError, match="did you mean cifar10"):
        where_to_put("cifar-10")


# --- Places-LT ---


def small_places(folder: Path, folders: list[str], **more: Any) -> Source:
    write_list(
        folder / "Places_LT_train.txt", [(f"{name}/{i}.jpg", k) for k, name in enumerate(folders) for i in (1, 2)]
    )
    write_list(folder / "Places_LT_val.txt", [("v.jpg", 0)])
    write_list(folder / "Places_LT_test.txt", [("t.jpg", 0)])
    return load_places_lt(DataConfig(source=str(folder), images=S3, verify=False, **more))


SCENES = ("airfield", "apartment building outdoor", "arch", "zen garden")


@pytest.mark.parametrize(
    "folders",
    [
        ["data_256/a/airfield", "data_256/a/apartment_building/outdoor", "data_256/a/arch", "data_256/z/zen_garden"],
        ["t/x/a/airfield", "t/x/a/apartment_building/outdoor", "t/x/a/arch", "t/x/z/zen_garden"],
        ["train/airfield", "train/apartment_building-outdoor", "train/arch", "train/zen_garden"],
        ["in/train/airfield", "in/train/apartment_building/outdoor", "in/train/arch", "in/train/zen_garden"],
        ["airfield", "apartment_building/outdoor", "arch", "zen_garden"],
    ],
)
def test_scenes_are_named_by_their_folders(folders: list[str], tmp_path: Path) -> None:
    assert small_places(tmp_path, folders).classes == SCENES


def test_scenes_are_named_by_the_categories_if_there(tmp_path: Path) -> None:
    rows = [("/z/zen_garden", 3), ("/a/arch", 2), ("/a/apartment_building/outdoor", 1), ("/a/airfield", 0)]
    write_list(tmp_path / "categories_places365.txt", rows)
    assert small_places(tmp_path, ["x/1", "x/2", "x/3", "x/4"]).classes == SCENES
    write_list(tmp_path / "categories_places365.txt", [("/a/airfield", 0), ("/a/arch", 2)])
    with pytest.raises(InputError, match=r"categories_places365\.txt should have each of the labels 0 to 1 once"):
        small_places(tmp_path, ["x/1", "x/2", "x/3", "x/4"])


def test_a_label_for_two_scenes_or_none(tmp_path: Path) -> None:
    assert small_places(tmp_path, ["d/a/a", "d/a/b"]).classes == ("a", "b")
    write_list(tmp_path / "Places_LT_train.txt", [("d/a/a/1", 0), ("d/a/b/1", 1), ("d/a/c/1", 1)])
    with pytest.raises(InputError, match=r"Places_LT_train\.txt: label 1 stands for two folders, d/a/b and d/a/c; "):
        load_places_lt(DataConfig(source=str(tmp_path), images=S3, verify=False))
    write_list(tmp_path / "Places_LT_train.txt", [("d/a/a/1", 0), ("d/a/b/1", 2)])
    with pytest.raises(InputError, match="no image has label 1, but labels go up to 2"):
        load_places_lt(DataConfig(source=str(tmp_path), images=S3, verify=False))


# --- iNaturalist 2018 ---

SPECIES = {40: "Bufo bufo", 3: "Apis mellifera", 12: "Corvus corax"}
TRAINING = [("t/1.jpg", 12), ("t/2.jpg", 3), ("t/3.jpg", 40), ("t/4.jpg", 12)]
TESTING = [("v/1.jpg", 40), ("v/2.jpg", 12), ("v/3.jpg", 3)]


def small_inaturalist(
    folder: Path, train: dict[str, Any] | None = None, test: dict[str, Any] | None = None, **more: Any
) -> Source:
    (folder / "train2018.json").write_text(json.dumps(train or coco(TRAINING, SPECIES)))
    (folder / "val2018.json").write_text(json.dumps(test or coco(TESTING, SPECIES)))
    return load_inaturalist2018(DataConfig(source=str(folder), images=S3, verify=False, **more))


def test_categories_become_classes_in_the_order_of_their_ids(tmp_path: Path) -> None:
    source = small_inaturalist(tmp_path)
    assert source.classes == ("Apis mellifera", "Corvus corax", "Bufo bufo")
    assert source.label_N.tolist() == [1, 0, 2, 1, 2, 1, 0]
    assert source.split_N.tolist() == [TRAIN] * 4 + [TEST] * 3
    assert [source.images.name(i) for i in (0, 6)] == [f"{S3}/t/1.jpg", f"{S3}/v/3.jpg"]


def test_hidden_species_need_the_file_with_their_names(tmp_path: Path) -> None:
    hidden = coco(TRAINING, {k: str(k) for k in SPECIES})
    with pytest.raises(InputError, match=r"train2018\.json hides the species behind numbers.*bring categories\.json"):
        small_inaturalist(tmp_path, hidden)
    names = [{"id": k, "name": name, "kingdom": "Animalia"} for k, name in SPECIES.items()]
    for table in (names, {"categories": names}):
        (tmp_path / "categories.json").write_text(json.dumps(table))
        assert small_inaturalist(tmp_path, hidden).classes == ("Apis mellifera", "Corvus corax", "Bufo bufo")
    for text, message in (
        (json.dumps(names[:2]), "has no name for category 12"),
        (json.dumps([{"id": k, "name": "8"} for k in SPECIES]), "has no name for category 3"),
        ("[{", "is damaged"),
        ("[1]", "is damaged"),
    ):
        (tmp_path / "categories.json").write_text(text)
        with pytest.raises(InputError, match=rf"categories\.json {message}.*bring categories\.json"):
            small_inaturalist(tmp_path, hidden)
    (tmp_path / "mine.txt").write_text("bee\nraven\ntoad\n")
    assert small_inaturalist(tmp_path, hidden, class_names=str(tmp_path / "mine.txt")).classes == (
        "bee",
        "raven",
        "toad",
    )


def without(key: str, place: int) -> dict[str, Any]:
    table = coco(TESTING, SPECIES)
    del table[key][place]
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"images": []}, "damaged or of another form"),
        (coco([], SPECIES), "lists no image"),
        (without("annotations", 1), "each image exactly one category"),
        (without("images", 1), "each image exactly one category"),
        (coco(TESTING, SPECIES) | {"annotations": coco(TESTING, SPECIES)["annotations"] * 2}, "exactly one category"),
        (coco([("v/1.jpg", 3), ("v/1.jpg", 12)], SPECIES), r"lists v/1\.jpg twice"),
        (coco([("v/1.jpg", 5)], SPECIES), r"uses category 5, which train2018\.json does not list"),
        ([1], "damaged"),
    ],
)
def test_damaged_json_is_refused(table: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"val2018\.json .*{message}.*download it again: put train2018\.json"):
        small_inaturalist(tmp_path, test=table)


def test_truncated_json_is_refused(tmp_path: Path) -> None:
    small_inaturalist(tmp_path)
    raw = (tmp_path / "train2018.json").read_bytes()
    (tmp_path / "train2018.json").write_bytes(raw[:-30])
    with pytest.raises(InputError, match=r"train2018\.json is damaged"):
        load_inaturalist2018(DataConfig(source=str(tmp_path), images=S3, verify=False))


def test_json_with_other_counts_is_refused(tmp_path: Path) -> None:
    small_inaturalist(tmp_path)
    with pytest.raises(InputError, match=r"has 4 images of 3 classes, 1 to 2 a class.*published one has 437,513"):
        load_inaturalist2018(DataConfig(source=str(tmp_path), images=S3))


# --- names of one's own ---


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("n.txt", "cat\ngreat dog\nfrög"),
        ("n.txt", "\ufeffcat\r\ngreat dog\r\nfrög\r\n\n"),
        ("n.json", '{"2": "frög", "0": "cat", "1": "great dog"}'),
        ("n.txt", ' {"2": "frög", "0": "cat", "1": "great dog"}'),
    ],
)
def test_names_of_ones_own(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert named(DataConfig(class_names=str(tmp_path / file)), ["a", "b", "c"]) == ("cat", "great dog", "frög")
    assert named(DataConfig(), ["a", "b", "c"]) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("n.txt", "cat\ndog\n", "names 2 classes, the data have 3"),
        ("n.txt", "cat\ndog\nfrog\nbird", "names 4 classes, the data have 3"),
        ("n.json", '{"0": "cat", "1": "dog"}', "label '2' is missing"),
        ("n.json", '{"0": "cat", "1": "dog", "2": "frog", "3": "bird"}', "label '3' is none of them"),
        ("n.json", '{"0": "cat", "1": "dog", "frog": "2"}', "0 to 2, each once, but label '2' is missing"),
        ("n.json", '{"0": "cat", "1": "dog", "2": 5}', "not a JSON object of strings"),
        ("n.json", '["cat", "dog", "frog"]', "not a JSON object of strings"),
        ("n.json", '{"0": "cat"', "cannot be read"),
        ("n.json", "", "cannot be read"),
    ],
)
def test_wrong_names_of_ones_own(file: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"data\.class_names: .*{message}.*give a line a class"):
        named(DataConfig(class_names=str(tmp_path / file)), ["a", "b", "c"])
    with pytest.raises(InputError, match=r"data\.class_names: .*nowhere cannot be read"):
        named(DataConfig(class_names=str(tmp_path / "nowhere")), ["a", "b", "c"])
