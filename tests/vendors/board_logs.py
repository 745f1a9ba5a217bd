"""Small logs of the form that boards' and vendors' tools write, for tests."""

from __future__ import annotations

PERF = """\
hrt_model_exec perf --model_file build/tiny_nv12.bin --frame_count=200 --thread_num=4
[BPU_PLAT]BPU Platform Version(1.3.6)!
[DNN] Runtime version = 1.24.5_(3.15.55 HBRT)
[A][DNN][packed_model.cpp:247][Model] [HorizonRT] The model builder version = 1.24.3
Load model to DDR cost 8.656ms.
Frame count: 200,  Thread Average: 4.25 ms,  thread max latency: 5.5 ms,  thread min latency: 1.5 ms,  FPS: 930.0

Running condition:
  Thread number is: 4
  Frame count   is: 200
  Program run time: 214.5 ms
Perf result:
  Frame totally latency is: 850.0 ms
  Average    latency    is: 4.25 ms
  Frame      rate       is: 932.5 FPS
"""

MODEL_INFO = """\
hrt_model_exec model_info --model_file tiny_nv12.bin
[DNN] Runtime version = 1.24.5_(3.15.55 HBRT)
[model name]: tiny_nv12

input[0]:
name: data
valid shape: (1,3,32,32,)
aligned shape: (1,3,32,32,)
tensor type: HB_DNN_IMG_TYPE_NV12

output[0]:
name: logits
valid shape: (1,10,1,1,)
tensor type: HB_DNN_TENSOR_TYPE_F32
"""

RATES = """\
# fp16
[VACC]:  top1_rate: 70.5 top5_rate: 89.75

# int8
[VACC]:  top1_rate: np.float64(0.6) top5_rate: np.float64(2.5)
"""

PROFILE = """\
- number of instances: 8
  devices: [0]
  queue size: 1
  batch size: 2
  throughput (qps): 1234.50
  latency (us):
    avg latency: 6400
    min latency: 3200
    max latency: 12800
    p50 latency: 6300
    p99 latency: 12000
"""

ACCURACY_ANALYSIS = """\
# simulator_error: calculate the output error of each layer of the simulator.

layer_name                                simulator_error                             runtime_error
                                        entire              single                  entire           single_sim
                                    cos      euc        cos      euc            cos      euc        cos      euc
-----------------------------------------------------------------------------------------------------------------
[Input] data                     1.00000 | 0.0       1.00000 | 0.0
[exDataConvert] data_int8        0.99999 | 2.0599    0.99999 | 2.0599
[Conv] conv/scale
[Relu] relu                      0.99750 | 4.75      0.99990 | 1.25          0.99700 | 5.25      0.99994 | 6.3273
[Conv] logits                    0.99500 | 1.5       0.99999 | 0.5           nan | inf           0.99999 | 0.25
"""

EVAL_PERF = """\
I rknn-toolkit2 version: 2.3.2
---------------------------------------------------------------------------------------------------
ID   OpType           DataType Target InputShape             OutputShape        Time(us)  FullName
---------------------------------------------------------------------------------------------------
1    InputOperator    INT8     CPU    \\                      (1,3,32,32)        5         InputOperator:data
2    ConvRelu         INT8     NPU    (1,3,32,32),(8,3,3,3)  (1,8,16,16)        733       Conv:relu
3    OutputOperator   INT8     CPU    (1,10)                 \\                  12        OutputOperator:logits
---------------------------------------------------------------------------------------------------
Total Operator Elapsed Per Frame Time(us): 750
Total Memory Read/Write Per Frame Size(KB): 12.5
"""

EVAL_MEMORY = """\
======================================================
            Memory Profile Info Dump
======================================================
NPU model memory detail(bytes):
    Total Weight Memory: 1.50 MiB
    Total Internal Tensor Memory: 0.25 MiB
    Total Memory: 2.00 MiB
"""

MODEL_DEPLOY = """\
[Running]: npz_tool.py compare tiny_bm1684x_int8_sym_tpu_outputs.npz tiny_top_outputs.npz --tolerance 0.8,0.5
compare logits_Gemm: 100%|##########| 2/2 [00:00<00:00,  6.52it/s]

[relu_Relu                       ]        EQUAL [PASSED]
    (1, 8, 16, 16) float32
[logits_Gemm                     ]      SIMILAR [PASSED]
    (1, 10) float32
    cosine_similarity      = 0.999750
    euclidean_similarity   = 0.985000
    sqnr_similarity        = 32.500000
2 compared
2 passed
min_similiarity = (0.99975, 0.985, 32.5)
Target    tiny_bm1684x_int8_sym_tpu_outputs.npz
Reference tiny_top_outputs.npz
npz compare PASSED.
[Success]: npz_tool.py compare tiny_bm1684x_int8_sym_tpu_outputs.npz tiny_top_outputs.npz --tolerance 0.8,0.5
[Running]: npz_tool.py compare tiny_bm1684x_int8_sym_model_outputs.npz tiny_bm1684x_int8_sym_tpu_outputs.npz
[logits_Gemm                     ]        EQUAL [PASSED]
    (1, 10) float32
npz compare PASSED.
"""

RUN_CALIBRATION = """\
TPU-MLIR v1.30.2-20260831
input_num = 40, ref = 40
activation_collect_and_calc_th for sample: 7:  20%|##        | 8/40 [00:00<00:01, 21.75it/s]
"""

CALIBRATION_TABLE = """\
# mlir version: v1.30.2-20260831 cali version 1.0
# quantization threshold calculation method: ['kl']
# genetated time: 2026-03-04 05:06:07.890
# histogram number: 2048
# sample number: 100
###
# op_name    threshold    min    max
data 1.0000080 0.0000000 1.0000080
relu_Relu 56.5000000 -102.5830231 97.6811752
"""

BMRT_TEST = """\
[BMRT][bmrt_test:1250] INFO:net[tiny] stage[0], launch total time is 1000 us (npu 900 us, cpu 100 us)
[BMRT][bmrt_test:1250] INFO:net[tiny] stage[0], launch total time is 2000 us (npu 1900 us, cpu 100 us)
[BMRT][bmrt_test:1319] INFO:load input time(s): 0.008669
[BMRT][bmrt_test:1321] INFO:calculate  time(s): 0.003000
[BMRT][bmrt_test:1322] INFO:get output time(s): 0.000076
"""
