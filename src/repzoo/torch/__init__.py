"""repzoo for PyTorch: `fold(module)` folds BatchNorms and branches, `export` writes an Artifact.

fold         the public fold
prepare      what people have as a plain copy in eval mode
trace        a module as an fx graph, without operations in place (inplace)
norms        BatchNorms after convolutions that only torch can fold
to_ir        an fx graph as an ONNX graph, and folded nodes back as layers
layers       what the fold knows of torch: each layer and function as an ONNX node, and back
to_artifact  a module as an ONNX file with preprocessing and labels
from_onnx    an ONNX graph as a torch.fx module, which the PyTorch engine and fine-tuning share
operators    ONNX operators as torch functions; those that move elements are in movement,
             convolutions and pools in windows
"""

from repzoo.torch.fold import FoldedModule, fold, fold_with_log
from repzoo.torch.to_artifact import export

__all__ = ["FoldedModule", "export", "fold", "fold_with_log"]
