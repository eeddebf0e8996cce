"""The check of the image sizes that a published architecture takes."""

from __future__ import annotations

from dotkd.models.arguments import check_shape

# The widest image, in pixels, that the networks for 32 and 64 pixels take. They keep a high resolution for so many
# layers that a larger image costs more than a network made for it.
SMALL_MOST = 128


def image_channels(
    model: str, input_shape: object, *, least: int, most: int | None = None, smaller: str, larger: str = ""
) -> int:
    """Return the channels of `input_shape` = (channels, height, width) if the images fit `model`.

    Args:
        model: the name of the model, for the message.
        input_shape: shape of one input without the batch dimension.
        least: smallest height and width, in pixels, that leave the last stage a sensible map.
        most: largest height and width, in pixels; None for no limit.
        smaller: the model that fits images smaller than `least`.
        larger: the model that fits images larger than `most`.

    Raises:
        TypeError: `input_shape` is no sequence of integers.
        ValueError: inputs that are no images, or images of a size that does not fit.
    """
    shape = check_shape(input_shape)
    if len(shape) != 3:
        fitting = "resnet1d" if len(shape) == 2 else "mlp"
        raise ValueError(
            f"{model} expects `input_shape` = (channels, height, width), got {shape}; {fitting} fits such inputs"
        )
    channels, height, width = shape
    sizes = f"at least {least} pixels" if most is None else f"{least} to {most} pixels"
    if min(height, width) < least:
        raise ValueError(f"{model} expects images of {sizes} a side, got {height} x {width}; {smaller} fits them")
    if most is not None and max(height, width) > most:
        raise ValueError(f"{model} expects images of {sizes} a side, got {height} x {width}; {larger} fits them")
    return channels
