#ifndef STAND_IN_MICRO_CONTEXT_H
#define STAND_IN_MICRO_CONTEXT_H

#include "tensorflow/lite/micro/micro_common.h"

namespace tflite {

class MicroContext {
   public:
    explicit MicroContext(TfLiteContext *context) : context_(context) {}
    TfLiteTensor *AllocateTempInputTensor(const TfLiteNode *node, int index) { return Taken(node->inputs->data[index]); }
    TfLiteTensor *AllocateTempOutputTensor(const TfLiteNode *node, int index) {
        return Taken(node->outputs->data[index]);
    }
    void DeallocateTempTfLiteTensor(TfLiteTensor *) { context_->temporaries--; }

   private:
    TfLiteTensor *Taken(int index) {
        context_->temporaries++;
        return context_->tensors + index;
    }
    TfLiteContext *context_;
};

inline MicroContext *GetMicroContext(const TfLiteContext *context) {
    static MicroContext made(const_cast<TfLiteContext *>(context));
    return &made;
}

}  // namespace tflite

#endif
