import keras
import pytest
from helpers import standins

from keras_simclr import cards, kinds

CARD = {
    "name": "My encoder",
    "inputs": {
        "shape": [None, 8, 8, 3],
        "contract": "Images.",
        "takes_files": False,
    },
    "outputs": {"shape": [None, 6]},
    "formats": {"keras": "encoder.keras"},
    "round_trip": {
        "images": 8,
        "largest_value": 2.0,
        "max_difference": {"keras": 1e-7},
    },
    "license": "Yours.",
    "versions": {"keras": "3.15.1"},
}


def test_readme_of_a_card_without_a_run_is_short():
    text = cards.readme(CARD, [])
    assert text.startswith("# My encoder\n\nA SimCLR encoder: it makes ")
    assert "| keras | 1e-07 |\n\n## Versions\n\nkeras 3.15.1\n" in text
    assert "What it is worth" not in text
    assert text.endswith("## Licence\n\nYours.\n")


def test_readme_shows_evaluation_recipe_and_data():
    row = standins.row()
    run = {
        "weights": "a7b8",
        "rows": [row],
        "recipe": {"data": "my photos", "epochs": "100"},
        "data": {"images": 24},
        "start": {"name": "runs/a", "weights": "c3"},
    }
    text = cards.readme({**CARD, **run}, [])
    assert "| simclr | linear | 10 | 90.0 | 85.0 to 95.0 |\n" in text
    assert "keras-simclr pretrain '--data=my photos' --epochs=100\n" in text
    assert "## Weights\n\na7b8 (SHA-256" in text
    assert "## Start\n\nruns/a, an encoder with the weights c3 (SHA" in text
    assert "## Data\n\nimages 24\n" in text


def test_what_describes_other_weights_is_left_out_and_said():
    trained = {"weights": "a", "official": {}, "epochs_trained": 3}
    evaluated = {"rows": [1], "gains": [], "evaluation": {"weights": "b"}}
    about = {"data": {}, **trained, **evaluated}
    with pytest.warns(UserWarning) as record:
        kept = cards.of_weights(about, "a")
    assert kept == {"data": {}, **trained}
    assert str(record[0].message) == (
        "What is known of a run must be of the weights at hand. Received: "
        "evaluation, gains, rows of other weights, or of unknown ones; they "
        "are left out. `keras-simclr evaluate` makes new rows."
    )
    with pytest.warns(UserWarning, match="data, epochs_trained, official of"):
        kept = cards.of_weights(about, "b")
    assert kept == evaluated
    with pytest.warns(UserWarning, match="Received: rows of other"):
        assert cards.of_weights({"rows": [1]}, "a") == {}
    assert cards.of_weights({"data": {}}, "a") == {"data": {}}


def test_contract_says_which_sizes_are_taken():
    fixed, free = (8, 8, 3), (None, None, 3)
    assert cards._contract(fixed, fixed, False, kinds.IMAGES).endswith(
        "batch size, 8 x 8 pixels."
    )
    assert cards._contract(free, free, False, kinds.IMAGES).endswith(
        "They are not resized."
    )
    assert "brings images to 8 x 8 pixels" in cards._contract(
        free, fixed, False, kinds.IMAGES
    )
    large = (224, 224, 3)
    for images in (large, free):
        text = cards._contract(images, large, True, kinds.IMAGES)
        assert "centre 7/8" in text
        assert "cropped twice" in text
        assert "7/8" not in cards._contract(images, large, False, kinds.IMAGES)
    assert (
        cards._contract((6,), (6,), False, kinds.OTHER)
        == "float32 of shape (batch, 6)."
    )


def test_card_says_of_imported_weights_only_what_is_known():
    encoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    ours = cards.describe(encoder, (4,), (4,))
    official = {"official": {"architecture": "r50_1x_sk0"}}
    theirs = cards.describe(encoder, (4,), (4,), about=official)
    assert "of your choice" in ours["license"]
    assert "of your choice" not in theirs["license"]
    assert "Apache License 2.0" in theirs["license"]
    for card in (ours, theirs):
        text = cards.readme({**CARD, **card}, [])
        assert "without labels" not in text
        assert text.endswith(f"## Licence\n\n{card['license']}\n")
    assert "that the official SimCLR code wrote, r50_1x_sk0: it makes" in text


@pytest.mark.fault(76)
def test_cards_hold_names_as_text_and_no_places():
    name = "/home/ada/<img onerror=x>|\n```"
    about = {
        "recipe": {"data": name, "depth": "10"},
        "data": {"source": name, "files": 3},
        "rows": [standins.row(features=name, probe="knn", labels="all")],
    }
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    card = cards.describe(network, (2,), (2,), about=about)
    assert "/home" not in str(card)
    assert card["recipe"] == {"data": name[10:], "depth": "10"}
    card["round_trip"] = {
        "images": 1,
        "largest_value": 1.0,
        "max_difference": {},
    }
    text = cards.readme(card, [])
    (row,) = (x for x in text.splitlines() if "| knn |" in x)
    assert row.startswith(r"| &lt;img onerror=x&gt;\|\\n\`\`\` | knn | all |")
    assert "source &lt;img" in text
    fenced = text.split("```shell\n")[1].splitlines()
    assert (fenced[0][:22], fenced[1]) == ("keras-simclr pretrain ", "```")


def test_page_names_what_is_no_text():
    """Names of files may be any bytes, and any under some locales."""
    recipe = {"data": "r\udcff", "output_dir": "r\udcc3\udca9"}
    text = cards.readme({**CARD, "recipe": recipe, "data": recipe}, [])
    assert "pretrain '--data=r\\xff' '--output_dir=r\u00e9'\n" in text
    assert "data r\\\\xff, output_dir r\u00e9\n" in text
    assert text.encode("utf-8")
