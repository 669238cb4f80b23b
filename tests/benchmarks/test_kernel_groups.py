from __future__ import annotations

import math

import pytest

from benchmarks.kernel_groups import GROUP_NAMES, OTHER, by_group, collect, group_of

NATIVE = "void at::native::"
ANONYMOUS = f"{NATIVE}(anonymous namespace)::"
ITERATOR = "at::TensorIteratorBase&"

# Names as the profiler gives them on Hopper and Ampere cards, the arguments of some left out.
KERNELS: dict[str, list[str]] = {
    "memcpy, memset": ["Memcpy HtoD (Pinned -> Device)", "Memcpy DtoD (Device -> Device)", "Memset (Device)"],
    "quantize": [
        "void kQuantizeBlockwise<float, 256, 2, 0, 0>(float*, float*, float*, unsigned char*, float*, int, int)",
        "void kInt8VectorQuant<__half, 1024, 1>(__half*, signed char*, float*, float, int, int)",
    ],
    "dequantize scales": [
        "void kDequantizeBlockwise<float, 512, 64, 8, 0>(float*, unsigned char*, float*, float*, int, int)",
        "void kDequantizeBlockwise<float, (int)512, (int)64, (int)8, (int)0>(float*, unsigned char*, float*, float*)",
    ],
    "dequantize": [
        "void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>(float*, unsigned char*, float*, __nv_bfloat16*)",
        "void kDequantizeBlockwise<__half, 512, 64, 8, 1>(float*, unsigned char*, float*, __half*, int, int)",
        "void kdequant_mm_int32_fp16<4, 512>(int*, float*, float*, __half*, __half*, int, int, int)",
    ],
    "optimizer": [
        "void kOptimizerStatic8bit2StateBlockwise<float, 0, 256, 1>(float*, float*, unsigned char*, unsigned char*)",
        "void kOptimizerStatic8bit1StateBlockwise<__nv_bfloat16, 5, 256, 1>(__nv_bfloat16*, __nv_bfloat16*)",
        "void kOptimizer32bit2State<float, 0>(float*, float*, float*, float*, float*, float, float, float)",
        "void kPreconditionOptimizer32bit2State<float, 0, 4096, 8>(float*, float*, float*, float*, float*)",
        "void kPercentileClipping<float, 2048, 4>(float*, float*, int, int)",
        f"{ANONYMOUS}multi_tensor_apply_kernel<at::native::(anonymous namespace)::FusedOptimizerTensorListMetadata<4>, "
        "at::native::(anonymous namespace)::FusedAdamMathFunctor<float, 4, (at::native::ADAM_MODE)1, false>>",
        f"{ANONYMOUS}multi_tensor_apply_kernel<at::native::(anonymous namespace)::TensorListMetadata<1>, "
        "at::native::(anonymous namespace)::LpNormFunctor<float, (at::native::NormType)1, float, 1, 1, 0>>",
        f"{NATIVE}lpnorm_cleanup<float, (at::native::NormType)1, float>(float const*, at::native::TensorListAddresses)",
    ],
    "loss": [
        f"{ANONYMOUS}cunn_SoftMaxForwardSmem<4, float, float, float, at::native::(anonymous namespace)::"
        "LogSoftMaxForwardEpilogue, long>(float*, float const*, long)",
        f"{ANONYMOUS}nll_loss_forward_reduce_cuda_kernel_2d<float, float, long>(float*, float*, float const*)",
    ],
    "attention": [
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>::Params)",
        "fmha_cutlassB_bf16_aligned_64x64_k64_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<>::Params)",
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, cutlass::bfloat16_t>>(Params)",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_64x128x64_4x1x1_cga1x1x1_kernel0_0",
        "void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16>(__nv_bfloat16 const*)",
        f"{ANONYMOUS}softmax_warp_forward<c10::BFloat16, c10::BFloat16, float, 5, false, false>(c10::BFloat16*)",
    ],
    "matmul, 4-bit": [
        "void gemm_4bit_sm80_m16n8k16<__nv_bfloat16, 64, 128>(__nv_bfloat16 const*, unsigned char const*)",
        "void gemm_4bit_simt<__nv_bfloat16, 4>(__nv_bfloat16 const*, unsigned char const*, float const*)",
        "void kgemm_4bit_inference_naive<__nv_bfloat16, 128, 16>(int, int, int, __nv_bfloat16*, unsigned char*)",
    ],
    "matmul": [
        "nvjet_tst_128x64_64x10_2x1_v_bz_TNT",
        "nvjet_sm90_tss_64x32_64x16_1x2_h_bz_splitK_NNN",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_warpgroupsize1x1x1_execute_segment_k_off_kernel",
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
        "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>(Params)",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, true>(int)",
        "void gemv2T_kernel_val<int, int, float, float, float, 128, 16, 4, 4, false>(cublasGemvParamsEx<int>)",
    ],
    "dropout, random": [
        f"{ANONYMOUS}fused_dropout_kernel_vec<float, float, unsigned int, 1, 4, bool>(at::cuda::detail::TensorInfo)",
        f"{ANONYMOUS}distribution_elementwise_grid_stride_kernel<float, 4, at::native::templates::cuda::normal>",
    ],
    "norm, reduction": [
        f"{NATIVE}reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float, float>>>(float)",
        f"{NATIVE}reduce_kernel<128, 4, at::native::ReduceOp<float, at::native::func_wrapper_t<float>>>(float)",
        f"{ANONYMOUS}vectorized_layer_norm_kernel<float, float>(int, float, float const*, float const*)",
    ],
    "indexing": [
        f"{NATIVE}vectorized_gather_kernel<16, long>(char*, char*, long*, int, long, long, long, long, bool)",
        f"{ANONYMOUS}indexSelectLargeIndex<float, long, unsigned int, 2, 2, -2, true>(at::cuda::detail::TensorInfo)",
        f"{NATIVE}index_elementwise_kernel<128, 4, at::native::gpu_index_kernel<>>(long)",
        f"{ANONYMOUS}indexing_backward_kernel<float, 4>(long const*, long const*, float const*, float*, long)",
        "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<at_cuda_detail::cub::DeviceRadixSortPolicy<long>>",
    ],
    "copy, cast": [
        f"{NATIVE}unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda({ITERATOR})::{{lambda()#3}}, "
        "at::native::memory::LoadWithCast<1>>(int)",
        f"{NATIVE}vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda({ITERATOR})>",
        f"{NATIVE}elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::direct_copy_kernel_cuda>>",
        f"{ANONYMOUS}CatArrayBatchedCopy_alignedK_contig<OpaqueType<2u>, unsigned int, 4, 64, 64, 16>(char*)",
    ],
    "elementwise": [
        f"{NATIVE}vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char*, 1ul>>(int)",
        f"{NATIVE}vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>(int)",
        f"{NATIVE}elementwise_kernel<128, 2, at::native::gpu_kernel_impl<at::native::BinaryFunctor<float, float>>>",
        f"{NATIVE}vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::silu_kernel({ITERATOR})>",
        f"{ANONYMOUS}elementwise_kernel_with_index<int, at::native::arange_cuda_out(c10::Scalar const&)>",
    ],
    OTHER: ["void some_kernel_of_tomorrow<float>(float*)", "triton_poi_fused_0"],
}

# On a CPU, torch's operators and bitsandbytes'.
OPERATORS: dict[str, list[str]] = {
    "autograd, views (host)": [
        "autograd::engine::evaluate_function: MmBackward0", "MulBackward0", "MatMul4BitBackward", "aten::view",
        "torch::autograd::AccumulateGrad", "aten::empty_strided", "detach",
    ],
    "quantize": ["bitsandbytes::quantize_blockwise", "bitsandbytes::int8_vectorwise_quant"],
    "dequantize scales": ["bitsandbytes::dequantize_blockwise"],
    "dequantize": ["bitsandbytes::dequantize_4bit", "bitsandbytes::int8_mm_dequant"],
    "optimizer": ["aten::_fused_adamw_", "aten::_foreach_mul_", "bitsandbytes::optimizer_update_8bit_blockwise"],
    "loss": ["aten::_log_softmax", "aten::_log_softmax_backward_data", "aten::nll_loss_backward"],
    "attention": ["aten::_scaled_dot_product_flash_attention_for_cpu_backward", "aten::_softmax"],
    "matmul, 4-bit": ["bitsandbytes::gemm_4bit", "MatMul4Bit"],
    "matmul": ["aten::mm", "aten::addmm", "aten::linear"],
    "dropout, random": ["aten::native_dropout", "aten::bernoulli_"],
    "norm, reduction": ["aten::sum", "aten::mean", "aten::linalg_vector_norm"],
    "indexing": ["aten::index", "aten::_index_put_impl_", "aten::index_select", "aten::embedding"],
    "copy, cast": ["aten::copy_", "aten::_to_copy", "aten::cat", "aten::clone"],
    "elementwise": ["aten::add_", "aten::mul", "aten::silu_backward", "aten::fill_", "aten::rsqrt"],
    OTHER: ["aten::an_operator_of_tomorrow"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for table in (KERNELS, OPERATORS) for group in table for name in table[group]]
)
def test_a_known_name_falls_into_its_group(group: str, name: str) -> None:
    assert group_of(name) == group


def test_every_group_has_a_known_name() -> None:
    assert {*KERNELS, *OPERATORS} == {*GROUP_NAMES}


def test_groups_hold_every_run_once() -> None:
    runs = [(names[number % len(names)], 0.1 * number) for number in range(1, 9) for names in KERNELS.values()]

    kernels = collect(runs)
    groups = by_group(kernels)

    assert list(groups) == [group for group in GROUP_NAMES if group in KERNELS]
    assert len({kernel.name for kernel in kernels}) == len(kernels) == len({name for name, _ in runs})
    assert [kernel.total_s for kernel in kernels] == sorted((kernel.total_s for kernel in kernels), reverse=True)
    assert sum(figures["count"] for figures in groups.values()) == len(runs)
    assert math.fsum(figures["total_s"] for figures in groups.values()) == pytest.approx(sum(s for _, s in runs))
    assert all(figures["count"] == 8 for figures in groups.values())
