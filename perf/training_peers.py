"""The sides of bench_training.py in .venv-peers (`make peers`): FuxiCTR and DeepCTR-Torch.

Each trains with its own loader and training loop. FuxiCTR's wheel has layers, loaders and the training loop,
but not these models of its zoo; they are built here from those layers.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from training_side import INIT_STD, LEARNING_RATE, Task, run_side


def arrays(task: Task, split: str) -> str:
    return str(Path(task.folder) / f"{split}.npz")


class FuxiCTR:
    """FuxiCTR's BaseModel.train_epoch over its RankDataLoader, with its default format (npz)."""

    def __init__(self, task: Task) -> None:
        from fuxictr.features import FeatureMap

        self.task = task
        self.map = FeatureMap("generated", task.folder)
        self.map.labels = ["label"]
        self.map.features.update(
            {
                field: {"source": "", "type": "categorical", "vocab_size": rows}
                for field, rows in task.num_embeddings.items()
            }
        )
        self.map.num_fields = self.map.get_num_fields()
        self.map.default_emb_dim = task.embedding_dim
        self.map.set_column_index()
        self.model = _fuxictr_model(self.map, task)

    def train(self) -> int:
        loader = self._loader("train")
        self.model._max_gradient_norm = 10.0  # the default of its `fit`, which also evaluates and saves
        self.model._total_steps, self.model._eval_steps, self.model._stop_training = 0, 1 << 62, False
        self.model.train_epoch(loader)
        return loader.num_samples

    def scores(self) -> np.ndarray:
        return self.model.predict(self._loader("test"))

    def _loader(self, split: str):
        from fuxictr.pytorch.dataloaders import RankDataLoader

        path = {f"{split}_data": arrays(self.task, split)}
        found = RankDataLoader(
            self.map, stage=split, batch_size=self.task.batch_size, data_format="npz", **path
        )
        return found[0] if split == "train" else found


def _fuxictr_model(map, task: Task) -> nn.Module:
    from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__(map, verbose=0, model_root=tempfile.gettempdir(), metrics=["AUC"])
            self.embedding_layer = FeatureEmbedding(
                map, task.embedding_dim, embedding_initializer=f"partial(nn.init.normal_, std={INIT_STD})"
            )
            inputs = map.sum_emb_out_dim()
            self.fm = FactorizationMachine(map) if task.model == "deepfm" else None
            self.crossnet = None if self.fm else CrossNetV2(inputs, task.cross_layers)
            # DeepFM's ends in a logit; DCN-V2's is an input of the last layer, next to the cross layers.
            self.mlp = MLP_Block(inputs, task.mlp, output_dim=1 if self.fm else None, batch_norm=True)
            self.fc = None if self.fm else nn.Linear(inputs + task.mlp[-1], 1)
            self.compile("adam", "binary_crossentropy", LEARNING_RATE)
            self.reset_parameters()

        def forward(self, inputs):
            fields = self.get_inputs(inputs)
            columns = self.embedding_layer(fields)
            flat = columns.flatten(start_dim=1)
            deep = self.mlp(flat)
            logits = (
                self.fm(fields, columns) + deep
                if self.fm
                else self.fc(torch.cat([self.crossnet(flat), deep], dim=-1))
            )
            return {"y_pred": self.output_activation(logits)}

    return Model()


class DeepCTR:
    """DeepCTR-Torch's DeepFM, or its DCN with full matrices, by `fit`; without its default regularization."""

    def __init__(self, task: Task) -> None:
        from deepctr_torch.inputs import SparseFeat
        from deepctr_torch.models import DCN, DeepFM

        self.task = task
        fields = [
            SparseFeat(field, vocabulary_size=rows, embedding_dim=task.embedding_dim)
            for field, rows in task.num_embeddings.items()
        ]
        shared = {
            "dnn_hidden_units": task.mlp,
            "dnn_use_bn": True,
            "l2_reg_linear": 0,
            "l2_reg_embedding": 0,
            "init_std": INIT_STD,
        }
        if task.model == "deepfm":
            self.model = DeepFM(fields, fields, **shared)
        else:
            self.model = DCN(
                [],
                fields,
                cross_num=task.cross_layers,
                cross_parameterization="matrix",
                l2_reg_cross=0,
                **shared,
            )
        assert LEARNING_RATE == 1e-3, "what its Adam takes"
        self.model.compile("adam", "binary_crossentropy")

    def train(self) -> int:
        fields, labels = self._split("train")
        self.model.fit(fields, labels, batch_size=self.task.batch_size, epochs=1, verbose=0)
        return len(labels)

    def scores(self) -> np.ndarray:
        return self.model.predict(self._split("test")[0], batch_size=self.task.batch_size).reshape(-1)

    def _split(self, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        with np.load(arrays(self.task, name)) as found:
            return {field: found[field] for field in self.task.num_embeddings}, found["label"].astype(
                np.float32
            )


if __name__ == "__main__":
    run_side({"fuxictr": FuxiCTR, "deepctr": DeepCTR})
