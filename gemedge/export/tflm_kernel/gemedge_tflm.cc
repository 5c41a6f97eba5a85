/* The operator gemedge.Activation for TensorFlow Lite Micro: the integers that gemedge's own C gives.

   A file's operator carries 44 bytes of options; the kernel whose options are the same in gemedge_tflm_kernels.h
   runs it. So sources that were written beside another file refuse this one when it is prepared. */

#include "gemedge_tflm.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "gemedge_elementwise.h"
#include "gemedge_rational.h"
#include "gemedge_tflm_kernels.h"
#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/kernels/kernel_util.h"
#include "tensorflow/lite/micro/micro_context.h"
#include "tensorflow/lite/micro/micro_log.h"

namespace gemedge {
namespace {

constexpr size_t kInputScale = 20, kInputZeroPoint = 24, kOutputScale = 28, kOutputZeroPoint = 32; /* in options */

void *Init(TfLiteContext *, const char *buffer, size_t length) {
    for (const gemedge_tflm_kernel &kernel : gemedge_tflm_kernels) {
        if (length == sizeof kernel.options && std::memcmp(buffer, kernel.options, length) == 0) {
            return const_cast<gemedge_tflm_kernel *>(&kernel);
        }
    }
    return nullptr;
}

bool IsAs(const TfLiteTensor &tensor, unsigned bytes, const uint8_t *scale, const uint8_t *zero_point) {
    return tensor.type == (bytes == 1 ? kTfLiteInt8 : kTfLiteInt16) &&
           std::memcmp(&tensor.params.scale, scale, sizeof tensor.params.scale) == 0 &&
           std::memcmp(&tensor.params.zero_point, zero_point, sizeof tensor.params.zero_point) == 0;
}

TfLiteStatus Prepare(TfLiteContext *context, TfLiteNode *node) {
    const auto *kernel = static_cast<const gemedge_tflm_kernel *>(node->user_data);
    if (kernel == nullptr) {
        MicroPrintf("gemedge.Activation: gemedge_tflm_kernels.h was written beside another file");
        return kTfLiteError;
    }
    tflite::MicroContext *micro = tflite::GetMicroContext(context);
    TfLiteTensor *in = micro->AllocateTempInputTensor(node, 0);
    TfLiteTensor *out = micro->AllocateTempOutputTensor(node, 0);
    const bool fits = in != nullptr && out != nullptr &&
                      IsAs(*in, kernel->in_bytes, kernel->options + kInputScale, kernel->options + kInputZeroPoint) &&
                      IsAs(*out, kernel->out_bytes, kernel->options + kOutputScale, kernel->options + kOutputZeroPoint) &&
                      tflite::NumElements(in) == tflite::NumElements(out);
    if (in != nullptr) {
        micro->DeallocateTempTfLiteTensor(in);
    }
    if (out != nullptr) {
        micro->DeallocateTempTfLiteTensor(out);
    }
    if (!fits) {
        MicroPrintf("gemedge.Activation: its tensors are not those of its options");
        return kTfLiteError;
    }
    return kTfLiteOk;
}

TfLiteStatus Invoke(TfLiteContext *context, TfLiteNode *node) {
    const auto &kernel = *static_cast<const gemedge_tflm_kernel *>(node->user_data);
    const TfLiteEvalTensor *in = tflite::micro::GetEvalInput(context, node, 0);
    TfLiteEvalTensor *out = tflite::micro::GetEvalOutput(context, node, 0);
    const auto count = static_cast<uint32_t>(tflite::micro::GetTensorShape(in).FlatSize());
    if (kernel.table != nullptr) {
        gemedge_lookup(in->data.raw, kernel.table, out->data.raw, kernel.out_bytes, count);
    } else {
        gemedge_activate(in->data.raw, kernel.rational, out->data.raw, kernel.out_bytes, count);
    }
    return kTfLiteOk;
}

}  // namespace

const TFLMRegistration *RegisterActivation() {
    static const TFLMRegistration registration = tflite::micro::RegisterOp(Init, Prepare, Invoke);
    return &registration;
}

}  // namespace gemedge
