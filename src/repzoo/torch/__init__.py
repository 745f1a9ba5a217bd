"""repzoo for PyTorch: `repzoo.torch.fold(module)` folds BatchNorms and branches.

fold       the public fold
to_ir      an fx graph as an ONNX graph, and folded nodes back as layers
from_onnx  an ONNX graph as a torch.fx module, which the PyTorch engine and fine-tuning share
operators  ONNX operators as torch functions
"""

from repzoo.torch.fold import FoldedModule, fold, fold_with_log

__all__ = ["FoldedModule", "fold", "fold_with_log"]
