"""The PyTorch peers, as their documentation uses them and tuned by hand."""

import os
import pathlib

import albumentations as A
import cv2
import kornia.augmentation as K
import numpy as np
import PIL.Image
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import nn
from torchvision.models import resnet50
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

from benchmarks.speed.images import (
    blur_size,
    parts_of_training,
    smooth_noise,
)

_THREADS = int(os.environ["OMP_NUM_THREADS"])
torch.set_num_threads(_THREADS)
cv2.setNumThreads(0)  # More would hang in forked processes.


def lightly_augmentation(source, size, batch_size):
    """The transform of lightly: two float tensors from each PIL image."""
    transform = SimCLRTransform(input_size=size, normalize=None)
    arrays = smooth_noise(batch_size, source)
    images = [PIL.Image.fromarray(array) for array in arrays]
    return lambda: sum(len(transform(image)) for image in images)


def torchvision_augmentation(source, size, batch_size):
    """The v2 transforms of torchvision on uint8 tensors, image by image."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(blur_size(size), (0.1, 2.0))]),
        ]
    )
    arrays = torch.from_numpy(smooth_noise(batch_size, source))
    images = arrays.permute(0, 3, 1, 2).contiguous()
    return lambda: len([transform(image) for image in images])


def kornia_augmentation(source, size, batch_size):
    """The augmentations of kornia on a batch of float images."""
    taps = blur_size(size)
    transform = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5),
        data_keys=["input"],
    )
    arrays = torch.from_numpy(smooth_noise(batch_size, source))
    images = arrays.permute(0, 3, 1, 2).contiguous()
    return lambda: len(transform(images.float() / 255.0))


def albumentations_augmentation(source, size, batch_size, smallest_crop=0.08):
    """The transforms of albumentations on uint8 arrays, image by image."""
    transform = _albumentations_transform(size, smallest_crop)
    images = list(smooth_noise(batch_size, source))
    return lambda: len([transform(image=image)["image"] for image in images])


def _albumentations_transform(
    size,
    min_scale=0.08,
    strength=1.0,
    flip_rate=0.5,
    grayscale_rate=0.2,
    blur_rate=0.5,
    seed=0,
):
    taps, most = blur_size(size), 0.8 * strength
    factors = (max(0.0, 1 - most), 1 + most)
    hues = (-0.2 * strength, 0.2 * strength)
    return A.Compose(
        [
            A.RandomResizedCrop((size, size), scale=(min_scale, 1.0)),
            A.HorizontalFlip(flip_rate),
            A.ColorJitter(factors, factors, factors, hues, 0.8),
            A.ToGray(p=grayscale_rate),
            A.GaussianBlur((taps, taps), (0.1, 2.0), p=blur_rate),
        ],
        seed=seed,
    )


def _encoder(blocks, width, channels):
    """keras_simclr's ResNet with `blocks` basic blocks a group, CIFAR stem."""
    inputs = round(64 * width)
    layers = [
        nn.Conv2d(channels, inputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
    ]
    for group in range(4):
        outputs = round(64 * width) * 2**group
        for place in range(blocks):
            stride, shortcut = 1, None
            if place == 0:
                stride = 2 if group > 0 else 1
                shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                    nn.BatchNorm2d(outputs),
                )
            layers.append(BasicBlock(inputs, outputs, stride, shortcut))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Views(torch.utils.data.Dataset):
    """Two float tensors from each PIL image, by lightly's transform."""

    def __init__(self, images, transform):
        self.images = images
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return self.transform(self.images[place])


class _FastViews(torch.utils.data.Dataset):
    """Both views of a whole batch as one uint8 array, by albumentations."""

    def __init__(self, images, transform):
        self.images = images
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, places):
        images = [self.images[place] for place in places]
        views = [self.transform(image=image)["image"] for image in 2 * images]
        return np.stack(views)


def _loader(images, transform, *, is_tuned, batch_size, **kwargs):
    """Whole batches of views in random order.

    By lightly's transform from PIL images; if tuned, by albumentations' from
    uint8 arrays, both views of a batch as one array.
    """
    if not is_tuned:
        return torch.utils.data.DataLoader(
            _Views(images, transform),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            **kwargs,
        )
    order = torch.utils.data.RandomSampler(images)
    return torch.utils.data.DataLoader(
        _FastViews(images, transform),
        sampler=torch.utils.data.BatchSampler(order, batch_size, True),
        batch_size=None,
        **kwargs,
    )


class _Photographs:
    """The photographs of a folder, decoded whenever they are asked for."""

    def __init__(self, directory, decode):
        self.paths = sorted(pathlib.Path(directory).iterdir())
        self.decode = decode

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, place):
        return self.decode(self.paths[place])


def lightly_pipeline(directory, size, batch_size):
    """The transform of lightly on what PIL decodes, a worker for each core."""
    return _pipeline(
        _Photographs(directory, lambda p: PIL.Image.open(p).convert("RGB")),
        SimCLRTransform(input_size=size, normalize=None),
        batch_size,
        is_tuned=False,
    )


def albumentations_pipeline(directory, size, batch_size):
    """The same transform by albumentations, on what OpenCV decodes."""
    return _pipeline(
        _Photographs(
            directory, lambda p: cv2.cvtColor(cv2.imread(p), cv2.COLOR_BGR2RGB)
        ),
        _albumentations_transform(size),
        batch_size,
        is_tuned=True,
    )


def _pipeline(images, transform, batch_size, *, is_tuned):
    loader = _loader(
        images,
        transform,
        is_tuned=is_tuned,
        batch_size=batch_size,
        num_workers=_THREADS,
        persistent_workers=True,
    )
    return lambda: sum(batch_size for _ in loader)


class _Trainer:
    """SimCLR by lightly: its documented example, or tuned by hand.

    Tuned: bfloat16 autocast, channels last, both views in one pass and the
    fastest transform.
    """

    def __init__(
        self,
        encoder,
        features,
        size,
        *,
        is_tuned,
        workers,
        is_compiled=False,
        batch_size=256,
        temperature=0.5,
        hidden=None,
        augmentation=None,
        **optimizer,
    ):
        self.is_tuned = is_tuned
        self.workers = workers
        self.batch_size = batch_size
        self.encoder = encoder
        head = SimCLRProjectionHead(features, hidden or features, 128)
        self.model = nn.Sequential(encoder, head)
        augmentation = augmentation or {}
        if is_tuned:
            self.model = self.model.to(memory_format=torch.channels_last)
            self.transform = _albumentations_transform(size, **augmentation)
        else:
            self.transform = SimCLRTransform(
                input_size=size, normalize=None, **augmentation
            )
        if is_compiled:
            self.model = torch.compile(self.model)
        self.criterion = NTXentLoss(temperature)
        self.optimizer = _optimizer(self.model, **optimizer)
        self.scheduler = None

    def loader(self, images, **kwargs):
        """The batches of one pass over images."""
        if not self.is_tuned:
            images = [PIL.Image.fromarray(image.squeeze()) for image in images]
        return _loader(
            images,
            self.transform,
            is_tuned=self.is_tuned,
            batch_size=self.batch_size,
            num_workers=self.workers,
            **kwargs,
        )

    def run(self, loader):
        """Trains on the batches of a loader; returns the number of images."""
        self.model.train()
        for batch in loader:
            self._loss(batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.scheduler:
                self.scheduler.step()
        return len(loader) * self.batch_size

    def _loss(self, batch):
        if not self.is_tuned:
            view_1, view_2 = batch
            return self.criterion(self.model(view_1), self.model(view_2))
        views = batch.permute(0, 3, 1, 2).float() / 255.0
        with torch.autocast("cpu", torch.bfloat16):
            z = self.model(views)
        return self.criterion(*z.float().chunk(2))


def _optimizer(model, name="SGD", **kwargs):
    if name == "SGD":
        return torch.optim.SGD(model.parameters(), **kwargs)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = {"params": [p for p in model.parameters() if p.ndim <= 1]}
    rest["weight_decay"] = 0.0
    return LARS([{"params": decay}, rest], weight_decay=1e-6, **kwargs)


def training(
    width, steps, is_tuned, workers, is_compiled=False, batch_size=256
):
    """Passes over a few batches of images, augmentation included."""
    trainer = _Trainer(
        _encoder(2, width, 3),
        round(512 * width),
        32,
        is_tuned=is_tuned,
        workers=workers,
        is_compiled=is_compiled,
        batch_size=batch_size,
        lr=0.06,
    )
    images = smooth_noise(steps * batch_size, 32)
    loader = trainer.loader(images, persistent_workers=workers > 0)
    return lambda: trainer.run(loader)


def loss(count, features=128):
    """The `NTXentLoss` of lightly and its gradient."""
    criterion = NTXentLoss(0.1)
    rng = np.random.default_rng(0)

    def gradients(z):
        criterion(*z).backward()
        return 1

    def normals(count):
        z = torch.from_numpy(rng.normal(size=(2, count, features)))
        return z.float().requires_grad_()

    gradients(normals(8))
    z = normals(count)
    return lambda: gradients(z)


def optimizer(name):
    """One step of an optimizer on ResNet-50's parameters."""
    model = resnet50()
    model.fc = nn.Identity()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = _optimizer(model, name, lr=0.1, momentum=0.9)

    def work():
        optimizer.step()
        return 1

    return work


class Pretraining:
    """Pretraining for so many steps; one of `parts` of them at a time."""

    def __init__(self, data, steps, parts, width, seed=0, **flags):
        torch.manual_seed(seed)
        arrays = np.load(data)
        self.images, self.test_images = arrays["images"], arrays["test_images"]
        _, size, _, channels = self.images.shape
        self.trainer = _Trainer(
            _encoder(1, width, channels), round(512 * width), size, **flags
        )
        self.trainer.scheduler = CosineWarmupScheduler(
            self.trainer.optimizer, steps // 10, steps
        )
        self.parts = parts_of_training(
            len(self.images), self.trainer.batch_size, steps, parts, seed
        )

    def __call__(self):
        part = next(self.parts)
        self.trainer.run(self.trainer.loader(self.images[part]))
        return len(part)

    def save(self, path):
        """Writes the representations of all images."""
        np.savez(
            path,
            train=self._features(self.images),
            test=self._features(self.test_images),
        )

    @torch.no_grad()
    def _features(self, images):
        encoder = self.trainer.encoder.eval()
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        parts = [encoder(x.float() / 255.0) for x in images.split(1000)]
        return torch.cat(parts).numpy()
