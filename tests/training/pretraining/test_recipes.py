import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from training.data.layouts import LAYOUTS
from training.pretraining.recipes import RECIPES, Recipe, parse

NUMBERS = [field.name for field in fields(Recipe) if field.type in (int, float, int | None)]


def test_every_number_of_a_recipe_is_checked():
    assert {"base_lr", "weight_decay", "warmup_epochs", "min_crop", "seed", "threads", "workers"} < {*NUMBERS}


@pytest.mark.parametrize(
    ("name", "layout", "images", "epochs", "prototypes"),
    [
        ("coco_800ep", "coco", "118,287", 800, 256),
        ("cocoplus_800ep", "coco+", "241,690", 800, 256),
        ("in1k_100ep", "imagenet", "1,281,167", 100, 2048),
        ("in1k_200ep", "imagenet", "1,281,167", 200, 2048),
        ("bdd100k_800ep", "bdd100k", "70,000", 800, 64),
        ("cocostuff27", "coco", None, 800, 27),
    ],
)
def test_published_recipes(name, layout, images, epochs, prototypes):
    description, recipe = RECIPES[name]
    assert (recipe.epochs, recipe.slotcon.num_prototypes) == (epochs, prototypes)
    slotcon = replace(Recipe().slotcon, num_prototypes=prototypes)
    paper = replace(Recipe(), layout=layout, epochs=epochs, slotcon=slotcon)
    assert images is None or f"({images} images)" in description
    assert images in (None, f"{LAYOUTS[layout].images:,}")
    assert replace(recipe, save_every=paper.save_every) == paper


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.batch_size, recipe.base_lr, recipe.peak_lr) == (512, 1.0, 2.0)
    assert (recipe.optimizer, recipe.weight_decay, recipe.warmup_epochs) == ("lars", 1e-5, 5)
    assert (recipe.view_size, recipe.min_crop, recipe.geometric) == (224, 0.08, True)
    config = recipe.slotcon
    assert (config.hidden_dim, config.out_dim, config.teacher_momentum) == (4096, 256, 0.99)
    assert (config.student_temp, config.teacher_temp, config.contrast_temp) == (0.1, 0.07, 0.2)
    assert (config.group_loss_weight, config.center_momentum) == (0.5, 0.9)


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ("--slot-loss regression", {"slot_loss": "regression"}),
        ("--align projections", {"align": "projections"}),
        ("--image-loss-weight 1", {"image_loss_weight": 1.0}),
        ("--no-geometric", {"geometric": False}),
        ("--batch-size 256", {"batch_size": 256}),
        ("--batch-size 1024", {"batch_size": 1024}),
    ],
)
def test_every_ablation_is_one_flag(flags, changed):
    _, default = parse(["coco_800ep", "--data", "x"])
    _, found = parse(["coco_800ep", "--data", "x", *flags.split()])
    if hasattr(default.slotcon, next(iter(changed))):
        changed = {"slotcon": replace(default.slotcon, **changed)}
    assert found == replace(default, **changed) != default


def test_batch_divides_over_processes_and_accumulation():
    assert Recipe(batch_size=512).micro_batch(8) == 64
    assert Recipe(batch_size=512, accumulation_steps=4).micro_batch(8) == 16
    with pytest.raises(ValueError, match="batch_size=512 does not divide over 6 processes: use --batch-size 510"):
        Recipe(batch_size=512).micro_batch(6)
    with pytest.raises(ValueError, match="does not divide over 2 processes of 3 accumulation steps"):
        Recipe(batch_size=64, accumulation_steps=3).micro_batch(2)


def test_every_recipe_that_is_short_saves_before_its_end():
    for name, (_, recipe) in RECIPES.items():
        assert recipe.save_every < recipe.epochs, name


def test_steps_follow_the_data():
    assert Recipe().steps_per_epoch(118287) == 231
    with pytest.raises(ValueError, match="500 images do not fill a batch: use --batch-size 500"):
        Recipe().steps_per_epoch(500)
    with pytest.raises(ValueError, match="too few"):
        Recipe().steps_per_epoch(1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"batch_size": 1}, "use at least 2"),
        ({"epochs": 3}, "warmup_epochs=5 is longer than epochs=3"),
        ({"min_crop": 0}, "min_crop=0 must be a fraction"),
        ({"workers": -1}, "workers=-1 must not be negative"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"keep_every": -5}, "keep_every=-5 must not be negative"),
        ({"keep_every": 7}, "keep_every=7 must be a multiple of save_every=5"),
        *[({name: math.nan}, f"{name}=nan must be a finite number") for name in NUMBERS],
        *[({name: -math.inf}, f"{name}=-inf must be a finite number") for name in NUMBERS],
        *[({name: -1}, f"{name}=-1 ") for name in NUMBERS],
        ({"base_lr": 0.0}, "base_lr=0.0 must be positive"),
        ({"epochs": 2.5}, "epochs=2.5 must be a whole number"),
        ({"resume": True}, "--resume needs --output"),
        ({"continue_at": 3}, "--continue-at needs --continue-from"),
        ({"continue_at": 800, "continue_from": Path("x.pth")}, "continue_at=800 must be an epoch from 0 to 799"),
    ],
)
def test_a_recipe_names_the_fix(values, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**values)
