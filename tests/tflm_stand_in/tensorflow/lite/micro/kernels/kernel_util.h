#ifndef STAND_IN_KERNEL_UTIL_H
#define STAND_IN_KERNEL_UTIL_H

#include "tensorflow/lite/micro/micro_common.h"

namespace tflite {

class RuntimeShape {
   public:
    explicit RuntimeShape(const TfLiteIntArray &dims) : dims_(dims) {}
    int FlatSize() const {
        int size = 1;
        for (int i = 0; i < dims_.size; i++) size *= dims_.data[i];
        return size;
    }

   private:
    TfLiteIntArray dims_;
};

inline int64_t NumElements(const TfLiteTensor *tensor) { return RuntimeShape(*tensor->dims).FlatSize(); }

namespace micro {

inline TFLMRegistration RegisterOp(void *(*init)(TfLiteContext *, const char *, size_t),
                                   TfLiteStatus (*prepare)(TfLiteContext *, TfLiteNode *),
                                   TfLiteStatus (*invoke)(TfLiteContext *, TfLiteNode *),
                                   void (*free)(TfLiteContext *, void *) = nullptr,
                                   void (*reset)(TfLiteContext *, void *) = nullptr) {
    return {init, free, prepare, invoke, reset, 0, nullptr};
}
inline const TfLiteEvalTensor *GetEvalInput(const TfLiteContext *context, const TfLiteNode *node, int index) {
    return context->eval_tensors + node->inputs->data[index];
}
inline TfLiteEvalTensor *GetEvalOutput(const TfLiteContext *context, const TfLiteNode *node, int index) {
    return context->eval_tensors + node->outputs->data[index];
}
inline RuntimeShape GetTensorShape(const TfLiteEvalTensor *tensor) { return RuntimeShape(*tensor->dims); }

}  // namespace micro
}  // namespace tflite

#endif
