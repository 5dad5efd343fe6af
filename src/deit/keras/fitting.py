"""Training with Keras's `fit`: the model's own loss, losses by the names of outputs, and checked labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongTypeError
from deit.core.outputs import ModelOutput
from deit.keras.inputs import labels_to_weight
from deit.keras.label_checks import check_labels, checked_data, class_ranges, plain_errors
from deit.keras.optimizers import leave_undecayed, undecayed
from deit.keras.targets import for_loss, for_metrics


class FittedModel(keras.Model):
    """A Keras model that `fit` trains by its own loss, or by the losses given to `compile`."""

    config: VisionTransformerConfig

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, and the tensors that the optimizer does not decay."""
        config = super().get_compile_config()
        plain = undecayed(self) if config else []
        return {**config, "undecayed": plain} if plain else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as `get_compile_config` described."""
        values = dict(config)
        plain = values.pop("undecayed", None)
        if not plain or type(self).compile is not keras.Model.compile:
            super().compile_from_config(values)
            return
        self.compile(**keras.saving.deserialize_keras_object(values))
        leave_undecayed(self, plain)
        self.optimizer.build(self.trainable_variables)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> Any:
        """Trains as `keras.Model.fit`. Weights of samples and classes also apply to labels inside the inputs.

        Raises:
            ValueError: There are weights and no labels, or a class number is out of range.
        """
        weights = {name: options.get(name) for name in ("sample_weight", "class_weight")}
        y = labels_to_weight(x, y, **weights)
        validation = options.get("validation_data")
        if isinstance(validation, (tuple, list)) and len(validation) >= 2:
            inputs, labels, *weight = validation
            check_labels(inputs, labels, self._class_ranges())
            if weight:
                labels = labels_to_weight(inputs, labels, sample_weight=weight[0], class_weight=None)
                options["validation_data"] = (inputs, labels, weight[0])
        elif validation is not None:
            options["validation_data"] = checked_data(validation, self._class_ranges())
        with self._checked(x, y) as x:
            return super().fit(x, y, *args, **options)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> Any:
        """Scores as `keras.Model.evaluate`; weights and errors as in `fit`."""
        y = labels_to_weight(x, y, sample_weight=options.get("sample_weight"), class_weight=None)
        with self._checked(x, y) as x:
            return super().evaluate(x, y, *args, **options)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Takes one step as `keras.Model.train_on_batch`; weights and errors as in `fit`."""
        y = labels_to_weight(x, y, sample_weight=sample_weight, class_weight=class_weight)
        check_labels(x, y, self._class_ranges())
        return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Scores one batch as `keras.Model.test_on_batch`; errors as in `fit`."""
        check_labels(x, y, self._class_ranges())
        return super().test_on_batch(x, y, sample_weight, return_dict)

    def _class_ranges(self) -> dict[Any, Any]:
        if "labels" not in self.call_signature_parameters:  # has no classifier
            return {}
        loss = None if self._compile_loss is None else self.loss
        return class_ranges(self.config.num_labels, self.config.problem_type, loss)

    @contextmanager
    def _checked(self, x: Any, y: Any) -> Iterator[Any]:
        """Checks labels in arrays, and yields a data set that checks the labels of its batches."""
        ranges = self._class_ranges()
        check_labels(x, y, ranges)
        with plain_errors(self):
            yield x if y is not None else checked_data(x, ranges)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the loss of `fit` and `evaluate`.

        A loss passed to `compile` compares `y` (or labels inside the inputs) with the logits. Losses by the names of
        outputs, `{"logits": ..., "cls_logits": ...}`, compare each with its targets, or all with `y` if that is one
        array. Without a compiled loss, the model uses its own: the `loss` of its output if the inputs hold labels (or
        a mask, to reconstruct), else the loss of its problem type. Weights of samples (Keras turns weights of classes
        into them) multiply the losses of images before the mean.

        Raises:
            ValueError: There are no labels, the model has no output of a name, or the number of weights is wrong.
        """
        if self._compile_loss is not None or not isinstance(y_pred, ModelOutput):
            y = x.get("labels") if y is None and isinstance(x, Mapping) else y
            y, y_pred = for_loss(y, y_pred, self.loss)
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        own = y_pred.get("loss")
        if own is None and y is None:
            raise UserError("The data has no labels. Pass y, or labels beside pixel_values in the inputs.")
        if own is None:
            own = self.loss_of_labels(y_pred, y, sample_weight=sample_weight)
        elif sample_weight is not None:
            own = self.loss_of_inputs(y_pred, x, sample_weight)
        return own + ops.sum(ops.stack([ops.sum(loss) for loss in self.losses])) if self.losses else own

    def loss_of_labels(self, output: ModelOutput, labels: Any, *, sample_weight: Any = None) -> Any:
        """Returns the loss of an output by labels, each image multiplied by its weight (B,).

        Raises:
            TypeError: The model has no loss by labels.
        """
        raise WrongTypeError(f"{type(self).__name__} has no loss of its own. Pass loss= to compile.")

    def loss_of_inputs(self, output: ModelOutput, inputs: Mapping[str, Any], sample_weight: Any) -> Any:
        """Returns the loss of an output by labels or masks in the inputs, each image multiplied by its weight (B,)."""
        return self.loss_of_labels(output, inputs["labels"], sample_weight=sample_weight)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Returns the metrics of `fit` and `evaluate`; outputs and targets are paired as in `compute_loss`."""
        if y is None and isinstance(x, Mapping):
            y = x.get("labels")
        if y is None and isinstance(y_pred, ModelOutput):
            return self.get_metrics_result()
        if self._compile_metrics is not None:
            asked = (self._compile_metrics._user_metrics, self._compile_metrics._user_weighted_metrics)
            y, y_pred = for_metrics(y, y_pred, asked)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def predict_step(self, *args: Any) -> Any:
        """Returns the outputs of one batch without the loss, which `predict` cannot concatenate."""
        result = super().predict_step(*args)
        if isinstance(result, ModelOutput):
            return _without_loss(result)
        outputs, *state = result if isinstance(result, tuple) else (result,)
        return (_without_loss(outputs), *state) if state else outputs


def _without_loss(output: Any) -> Any:
    if not isinstance(output, ModelOutput) or "loss" not in output:
        return output
    return type(output)(**{name: value for name, value in output.items() if name != "loss"})
