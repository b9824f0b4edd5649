"""Stacks of thick slices of a moving head, and the volume reconstructed from them.

Legend: C channels, X Y Z the cropped volume, K slices of one stack, P points across the slice profile, H W pixels.
Frames: positions are in mm in the anatomy's frame, voxel i of an axis lying at i · spacing. A slice has an origin (its
centre) and three axes: rows and columns in plane, and its normal. Motion moves the slice relative to the anatomy; the
reconstruction knows where each slice was, except for misregistered ones, so anatomy and labels stay aligned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import integer, uniform
from models.gmm.artefacts.fields import (
    Masks,
    SmoothWeight,
    bounding_box,
    coin,
    draw_seed,
    generator_for,
    sample_weight,
)
from models.gmm.resampling import blurred

STACKS = (2, 6)
MAX_SLICES = 250  # of all stacks together
RESOLUTION = (0.5, 2.0)  # in plane, in voxels
MAX_RESOLUTION = 1.5  # mm
THICKNESS = (1.5, 3.5)  # mm, full width at half maximum of the slice profile
SLICE_SPACING = (1.5, 5.5)  # mm from slice to slice, so slices may overlap or leave gaps
STACK_SHIFT = 3.0  # mm, either way and in plane
REPETITION_TIME = (1.0, 2.0)  # s from slice to slice
NOISE = (0.0, 0.1)  # Rician sigma on the [0, 1] scale
NOISE_FLOOR = 0.1  # darker voxels get none
GAMMA = 0.1  # probabilities from here on
VOID = 0.2
MISREGISTERED_SLICES = 0.1
MISREGISTERED_STACK = 0.1
REMOVED = 0.3
REMOVED_SHARE = (0.1, 0.4)
SMOOTHING = 0.2
# The predecessors replay recorded trajectories, which we have not; amplitudes and all below are our choice.
ROTATION = (1.0, 6.0)  # degrees, standard deviation of the walk about each axis
TRANSLATION = (0.5, 3.0)  # mm, the same
JUMP = 0.03  # probability of a sudden new pose at each slice
JUMP_SIZE = 2.0  # standard deviations of the walk
MEMORY = (5.0, 60.0)  # s: over which velocity and position are forgotten
INTERLEAVE = (2, 4)
MISREGISTERED_SHARE = (0.05, 0.2)  # of the slices
MISREGISTRATION = (10.0, 5.0)  # degrees and mm, uniform either way
GAMMA_SPREAD = 0.2  # standard deviation of the logarithm of the slices' exponents
VOID_SIGMA = (4.0, 20.0)  # mm
VOID_DEPTH = (0.3, 1.0)

MARGIN = 6.0  # mm of field of view beyond the brain
TAPER = 3.0  # mm: width of the blurred brain by which the artefact fades out, over about 5 mm, outside the brain
POINTS = 5  # across the slice profile
REACH = 2.0  # standard deviations: where the slice profile ends in acquisition
SPREAD = 1.5  # the same in reconstruction: how far a slice spreads its values
FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, in standard deviations
FINEST = 1.0  # voxels: finer pixels are simulated as this, since the volume holds no finer detail
CHUNK = 2_000_000  # points sampled at a time: 24 MB of coordinates


@dataclass(frozen=True)
class SliceStack:
    """K slices of H·W pixels: where they were and where the reconstruction believes they were. float64 on the CPU.

    origin, believed_origin: (K, 3) mm, centres of the slices. axes, believed_axes: (K, 3, 3), as rows the unit vectors along
    the slice's rows (H), columns (W) and normal. pixel: mm. size: (H, W).
    """

    origin: Tensor
    axes: Tensor
    believed_origin: Tensor
    believed_axes: Tensor
    pixel: float
    size: tuple[int, int]

    def moved(self, pose: Tensor, center: Tensor) -> SliceStack:
        """The same slices of a head in these poses (K, 6), degrees and mm about center (3,) mm; the reconstruction knows."""
        rotation = rotation_matrices(pose[:, :3])
        # A head turned by R and shifted by t: what a slice sees at x is the anatomy at R^T (x - t).
        origin = torch.einsum("kji,kj->ki", rotation, self.origin - center - pose[:, 3:]) + center
        axes = self.axes @ rotation  # rows e -> R^T e
        return replace(self, origin=origin, axes=axes, believed_origin=origin, believed_axes=axes)

    def misplaced(self, error: Tensor, center: Tensor) -> SliceStack:
        """The same slices, believed to lie elsewhere by error (K, 6), degrees and mm about center (3,) mm."""
        wrong = self.moved(error, center)
        return replace(self, believed_origin=wrong.origin, believed_axes=wrong.axes)

    def only(self, kept: Tensor) -> SliceStack:
        """The slices that are kept, (K,) bool."""
        poses = ("origin", "axes", "believed_origin", "believed_axes")
        return replace(self, **{name: getattr(self, name)[kept] for name in poses})

    def pixels(self) -> tuple[Tensor, Tensor]:
        """Positions in plane, mm from the origin: (H,) and (W,)."""
        H, W = self.size
        rows, columns = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (H, W))
        return rows * self.pixel, columns * self.pixel


@dataclass(frozen=True)
class SimulatedMotion(SmoothWeight):
    """Slices of a moving head are acquired and reconstructed, and the result is mixed into the image by a smooth weight.

    spacing: of the image, mm. stacks: of slices, in random orientations. resolution: in plane, mm. thickness: FWHM of the
    Gaussian slice profile, mm. slice_spacing: mm. repetition_time: s from slice to slice. interleave: every so many-th slice
    is acquired, then the next series. rotation, translation: standard deviations of the head's random walk, degrees and mm.
    noise: Rician sigma. gamma: a random exponent for each slice. void_probability: of a signal void, for each slice.
    misregistered: share of slices placed wrongly. misregistered_stack: index of a stack placed wrongly as a whole, or -1.
    removed: share of slices left out. smooth: mean over 3 voxels along each axis of the result. seed: of orientations,
    trajectory and everything per slice or voxel. The weight's fields are those of `SmoothWeight`.

    The trajectory is simulated: velocity and position are random walks with memory, and now and then the head jumps to
    another pose.
    """

    spacing: tuple[float, ...]
    stacks: int
    resolution: float
    thickness: float
    slice_spacing: float
    repetition_time: float
    interleave: int
    rotation: float
    translation: float
    noise: float
    gamma: bool
    void_probability: float
    misregistered: float
    misregistered_stack: int
    removed: float
    smooth: bool
    seed: int

    @classmethod
    def sample(cls, generator: torch.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]) -> SimulatedMotion:
        """Draw one. generator: on the CPU. shape, spacing: of the image, voxels and mm, of three axes."""
        count = integer(generator, *STACKS)
        wrong_stack = integer(generator, 0, count - 1) if coin(generator, MISREGISTERED_STACK) else -1
        in_plane = min(uniform(generator, *RESOLUTION) * min(spacing), MAX_RESOLUTION)
        return cls(
            **sample_weight(generator),
            spacing=tuple(spacing),
            stacks=count,
            resolution=in_plane,
            thickness=uniform(generator, *THICKNESS),
            slice_spacing=uniform(generator, *SLICE_SPACING),
            repetition_time=uniform(generator, *REPETITION_TIME),
            interleave=integer(generator, *INTERLEAVE),
            rotation=uniform(generator, *ROTATION),
            translation=uniform(generator, *TRANSLATION),
            noise=uniform(generator, *NOISE),
            gamma=coin(generator, GAMMA),
            void_probability=VOID,
            misregistered=uniform(generator, *MISREGISTERED_SHARE) if coin(generator, MISREGISTERED_SLICES) else 0.0,
            misregistered_stack=wrong_stack,
            removed=uniform(generator, *REMOVED_SHARE) if coin(generator, REMOVED) else 0.0,
            smooth=coin(generator, SMOOTHING),
            seed=draw_seed(generator),
        )

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Masks) -> Tensor:
        """Image (C, X, Y, Z) in [0, 1] -> the same shape; the image itself where there is no brain.

        A slice removed or a gap between slices leaves voxels that no slice saw: these keep the image.
        """
        if not masks.brain.any():
            return image
        box = bounding_box(masks.brain, math.ceil(MARGIN / min(self.spacing)))
        inside = masks.cropped(box)
        clean = image[(slice(None), *box)]
        generator = generator_for(self.seed)
        reconstruction, seen = self.reconstruct(clean, inside.brain, generator)
        weight = self.weight_map(inside, generator) * seen * self._taper(inside.brain)
        output = image.clone()
        output[(slice(None), *box)] = torch.lerp(clean, reconstruction, weight)
        return output

    def reconstruct(self, image: Tensor, brain: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Acquire all stacks and put them together again: (C, X, Y, Z), (X, Y, Z) bool -> the same and what was seen, bool.

        The sum over slices of profile weight times slice value at the voxel's place in the slice, over the sum of the
        weights: the adjoint of acquisition, normalised, with linear interpolation in plane.
        """
        noise_generator = generator_for(self.seed + 1, image.device)
        stacks = self._plan(brain, generator)
        in_plane = 0.5 * self.resolution  # mm, standard deviation; FWHM 1.2 pixels (Kuklisova-Murgasova et al., 2012)
        smooth = blurred(image, [in_plane / s for s in self.spacing])
        sums = []  # by axis: the volume with that axis moved to the end and one more voxel at either end of it
        for axis, size in enumerate(image.shape[1:], 1):
            others = [n for other, n in enumerate(image.shape) if other not in (0, axis)]
            sums.append(torch.zeros(len(image) + 1, *others, size + 2, device=image.device))
        for stack in stacks:
            slices = self._acquire(smooth, stack, in_plane)
            slices = self._corrupt(slices, stack, generator, noise_generator)
            self._scatter(slices, stack, sums)
        total = sum(
            (part[..., 1:-1].movedim(-1, axis + 1) for axis, part in enumerate(sums)), start=torch.zeros_like(image[:1])
        )
        weight = total[-1]
        seen = weight > 0
        mean = total[:-1] / weight.clamp(min=1e-6)
        if self.smooth:
            mean = torch.where(seen, mean, image)
            mean = F.avg_pool3d(mean, 3, stride=1, padding=1, count_include_pad=False)
        return mean, seen

    def _plan(self, brain: Tensor, generator: torch.Generator) -> list[SliceStack]:
        """Where every slice lies, was and is believed to have been. All on the CPU in float64."""
        points = _brain_points(brain) * torch.tensor(self.spacing, dtype=torch.float64)  # (M, 3) mm
        center = points.mean(0)
        orientations = [_random_rotation(generator) for _ in range(self.stacks)]
        nominal = [self._place(rotation, points, generator) for rotation in orientations]
        kept = [0]
        for index in range(1, self.stacks):
            if sum(len(nominal[i].origin) for i in kept) + len(nominal[index].origin) <= MAX_SLICES:
                kept.append(index)
        poses = self._poses([len(nominal[i].origin) for i in kept], generator)
        stacks = []
        for index, pose in zip(kept, poses, strict=True):
            stack = nominal[index].moved(pose, center)
            stack = stack.misplaced(self._errors(len(pose), index == self.misregistered_stack, generator), center)
            remaining = torch.rand(len(pose), generator=generator) >= self.removed
            stacks.append(stack.only(remaining))
        return [stack for stack in stacks if len(stack.origin)]

    def _place(self, axes: Tensor, points: Tensor, generator: torch.Generator) -> SliceStack:
        """A stack that covers the points (M, 3) mm, before any motion. axes (3, 3): rows, columns, normal as rows."""
        projected = points @ axes.T
        low, high = projected.amin(0) - MARGIN, projected.amax(0) + MARGIN
        middle = (low + high) / 2
        middle[:2] += STACK_SHIFT * (2 * torch.rand(2, generator=generator, dtype=torch.float64) - 1)
        count = min(math.ceil(float(high[2] - low[2]) / self.slice_spacing), MAX_SLICES)
        along = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * self.slice_spacing
        origin = middle @ axes + along[:, None] * axes[2]
        pixel = max(self.resolution, FINEST * min(self.spacing))
        size = tuple(math.ceil(float(extent) / pixel) for extent in (high - low)[:2])
        repeated = axes.expand(count, 3, 3)
        return SliceStack(origin, repeated, origin, repeated, pixel, (size[0], size[1]))

    def _poses(self, counts: list[int], generator: torch.Generator) -> list[Tensor]:
        """Pose of the head at each slice, (K, 6) per stack in the order of the slices: degrees and mm."""
        scale = torch.tensor([self.rotation] * 3 + [self.translation] * 3, dtype=torch.float64)
        timeline = scale * random_walk(sum(counts), self.repetition_time, generator)
        poses = []
        for acquired, count in zip(timeline.split(counts), counts, strict=True):
            order = torch.cat([torch.arange(first, count, self.interleave) for first in range(self.interleave)])
            poses.append(acquired[order.argsort()])
        return poses

    def _errors(self, count: int, whole_stack: bool, generator: torch.Generator) -> Tensor:
        """By how much the reconstruction misjudges each slice's pose, (K, 6) in degrees and mm; mostly 0."""
        rotation, translation = MISREGISTRATION
        scale = torch.tensor([rotation] * 3 + [translation] * 3, dtype=torch.float64)
        errors = scale * (2 * torch.rand(count + 1, 6, generator=generator, dtype=torch.float64) - 1)
        wrong = torch.rand(count, 1, generator=generator) < self.misregistered
        return errors[:-1] * wrong + errors[-1] * whole_stack

    def _acquire(self, image: Tensor, stack: SliceStack, in_plane: float) -> Tensor:
        """Slices (K, C, H, W) of the image (C, X, Y, Z), which is already blurred by `in_plane` mm in all directions."""
        width = math.sqrt(max((self.thickness / FWHM) ** 2 - in_plane**2, 1e-4))
        offsets = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
        profile = torch.exp(-0.5 * offsets**2)
        profile = (profile / profile.sum()).to(image)
        H, W = stack.size
        to_grid = 2 / (torch.tensor(self.spacing) * (torch.tensor(image.shape[1:]) - 1).clamp(min=1))  # mm to [-1, 1]
        origin = (stack.origin * to_grid - 1).flip(-1).to(image)  # grid_sample counts axes from the last
        row, column, normal = (stack.axes * to_grid).flip(-1).to(image).unbind(1)  # each (K, 3)
        v, u, d = (x.to(image) for x in (*stack.pixels(), offsets * width))
        slices = []
        for part in torch.arange(len(origin), device=image.device).split(max(1, CHUNK // (POINTS * H * W))):
            start = origin[part, None] + d[:, None] * normal[part, None]  # (k, P, 3)
            lines = start[:, :, None] + v[:, None] * row[part, None, None]  # (k, P, H, 3)
            grid = lines[:, :, :, None] + u[:, None] * column[part, None, None, None]  # (k, P, H, W, 3)
            volume = image.expand(len(part), *image.shape)
            points = F.grid_sample(volume, grid, padding_mode="border", align_corners=True)  # (k, C, P, H, W)
            slices.append(torch.einsum("kcphw,p->kchw", points, profile))
        return torch.cat(slices)

    def _corrupt(
        self, slices: Tensor, stack: SliceStack, generator: torch.Generator, noise_generator: torch.Generator
    ) -> Tensor:
        """Contrast, signal voids and noise of each slice. (K, C, H, W) -> the same."""
        K = len(slices)
        exponent = torch.exp(GAMMA_SPREAD * torch.randn(K, 1, 1, 1, generator=generator)).to(slices)
        if self.gamma:
            slices = slices.clamp(min=0) ** exponent
        slices = slices * signal_voids(stack, self.void_probability, generator).to(slices)[:, None]
        if self.noise == 0:
            return slices
        real, imaginary = (
            self.noise * torch.randn(slices.shape, generator=noise_generator, device=slices.device) for _ in range(2)
        )
        return torch.where(slices > NOISE_FLOOR, torch.hypot(slices + real, imaginary), slices)

    def _scatter(self, slices: Tensor, stack: SliceStack, sums: list[Tensor]) -> None:
        """Add every slice to the sum over the axis that its normal is nearest to, in place. slices (K, C, H, W).

        A slice takes its voxels column by column along that axis: only a few of each lie within its profile, so they form a
        dense block (A, B, J). In one slice no voxel occurs twice, hence no order of additions is left open on any device.
        """
        H, W = stack.size
        sigma = self.thickness / FWHM
        spacing = torch.tensor(self.spacing, dtype=torch.float64)
        half = torch.tensor([H, W], dtype=torch.float64) * stack.pixel / 2
        for image, origin, axes in zip(slices, stack.believed_origin, stack.believed_axes, strict=True):
            axis = int((axes[2] * spacing).abs().argmax())
            order = [a for a in range(3) if a != axis] + [axis]
            _add_slice(image, sums[axis], -axes @ origin, (axes * spacing)[:, order], sigma, half)

    def _taper(self, brain: Tensor) -> Tensor:
        """1 in the brain, falling smoothly to 0 outside: (X, Y, Z). An edge along the mask would give the labels away."""
        near = blurred(brain[None].float(), [TAPER / s for s in self.spacing])[0]
        return (3 * near - 0.15).clamp_(0, 1)


def _add_slice(image: Tensor, total: Tensor, offset: Tensor, step: Tensor, sigma: float, half: Tensor) -> None:
    """Add profile weight · slice and profile weight to a sum over the volume, in place.

    image (C, H, W). total (C + 1, A, B, N + 2), the last axis the one nearest to the normal, with one more voxel at either
    end for what falls outside. Place of voxel (a, b, n) in the
    slice's frame (row, column, depth), mm: offset (3,) + step (3, 3) · (a, b, n). sigma: of the profile. half: (2,) mm, half
    of the slice's height and width.
    """
    A, B, N = total.shape[1], total.shape[2], total.shape[3] - 2
    a, b = (torch.arange(n, dtype=torch.float32, device=total.device) for n in (A, B))
    scale = torch.cat([half, torch.ones(1, dtype=half.dtype)])  # in plane -1 and 1 are the slice's edges
    (y0, x0, depth0), (y, x, depth) = (offset / scale).tolist(), (step / scale[:, None]).tolist()
    reach = SPREAD * sigma / abs(depth[2])  # voxels along the column
    middle = (-depth0 / depth[2]) - (depth[0] / depth[2] * a[:, None] + depth[1] / depth[2] * b)  # (A, B)
    met = (middle > -reach) & (middle < N - 1 + reach)
    if not met.any():
        return
    rows, columns = bounding_box(met, 0)
    a, b, middle = a[rows, None, None], b[None, columns, None], middle[rows, columns, None]
    n = torch.ceil(middle - reach) + torch.arange(int(2 * reach) + 1, device=total.device)  # (A, B, J)
    grid = torch.stack([(k0 + k[0] * a + k[1] * b).add(n, alpha=k[2]) for k0, k in ((x0, x), (y0, y))], -1)
    weight = torch.exp((n - middle).square_().mul_(-0.5 * (depth[2] / sigma) ** 2))
    # The first axis serves as the batch of grid_sample, which runs in parallel over it alone.
    image = torch.cat([image, torch.ones_like(image[:1])]).expand(len(a), -1, -1, -1)
    value = F.grid_sample(image, grid, align_corners=False)  # (A, C + 1, B, J), 0 outside the slice
    index = n.clamp_(-1, N).add_(1).long()
    for channel, part in enumerate(total):
        part[rows, columns].scatter_add_(2, index, weight * value[:, channel])


def _brain_points(brain: Tensor) -> Tensor:
    """Voxels that tell the extent and centre of the brain to about 2 voxels: (X, Y, Z) bool -> (M, 3) float64 on the CPU."""
    blocks = F.max_pool3d(brain[None].float(), 4, ceil_mode=True)[0]
    return blocks.nonzero().double().cpu() * 4 + 1.5


def rotation_matrices(vectors: Tensor) -> Tensor:
    """Rotations by |v| degrees about v: (K, 3) -> (K, 3, 3)."""
    x, y, z = vectors.deg2rad().unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


def _random_rotation(generator: torch.Generator) -> Tensor:
    """A uniformly distributed rotation (3, 3), from a random unit quaternion."""
    w, x, y, z = F.normalize(torch.randn(4, generator=generator, dtype=torch.float64), dim=0).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


def random_walk(steps: int, interval: float, generator: torch.Generator) -> Tensor:
    """Six smooth walks of mean 0 and standard deviation 1, with jumps to other poses: (steps, 6) float64.

    Velocity is an AR(1) process, position its leaky sum; both forget as MEMORY says. A jump adds an offset that lasts until
    the next one. interval: s between steps.
    """
    velocity_kept, position_kept = (math.exp(-interval / memory) for memory in MEMORY)
    velocity, position, offset = torch.zeros(3, 6, dtype=torch.float64)
    walk, offsets = [], []
    for _ in range(steps):
        pushes = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        velocity = velocity_kept * velocity + pushes[0]
        position = position_kept * position + velocity
        offset = JUMP_SIZE * pushes[1] if coin(generator, JUMP) else offset
        walk.append(position)
        offsets.append(offset)
    smooth = torch.stack(walk)
    smooth = (smooth - smooth.mean(0)) / smooth.std(0, correction=0).clamp(min=1e-6)
    jumps = torch.stack(offsets)
    return smooth + jumps - jumps.mean(0)


def signal_voids(stack: SliceStack, probability: float, generator: torch.Generator) -> Tensor:
    """Factor in [0, 1] for each pixel: with this probability a slice has one dip, a rotated Gaussian. (K, H, W) float32."""
    K, (H, W) = len(stack.origin), stack.size
    share = torch.rand(K, 7, generator=generator)
    affected = share[:, 0] < probability
    row, column = (x.float() for x in stack.pixels())
    center = (share[:, 1:3] - 0.5) * torch.tensor([H, W]) * stack.pixel  # (K, 2) mm
    sigma = VOID_SIGMA[0] + (VOID_SIGMA[1] - VOID_SIGMA[0]) * share[:, 3:5]
    angle = math.pi * share[:, 5, None, None]
    depth = (VOID_DEPTH[0] + (VOID_DEPTH[1] - VOID_DEPTH[0]) * share[:, 6]) * affected
    y, x = row[:, None] - center[:, 0, None, None], column - center[:, 1, None, None]  # (K, H, 1), (K, 1, W)
    along, across = y * angle.cos() + x * angle.sin(), x * angle.cos() - y * angle.sin()  # (K, H, W)
    squared = (along / sigma[:, 0, None, None]) ** 2 + (across / sigma[:, 1, None, None]) ** 2
    return 1 - depth[:, None, None] * torch.exp(-0.5 * squared)
