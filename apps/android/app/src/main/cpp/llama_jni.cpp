// llama.cpp for LlamaModel.kt: one context, greedy decoding. Strings cross as UTF-8 bytes, which JNI's own are not.

#include <jni.h>
#include <llama.h>

#include <algorithm>
#include <string>
#include <vector>

namespace {

struct Session {
    llama_model * model = nullptr;
    llama_context * context = nullptr;

    ~Session() {
        if (context != nullptr) llama_free(context);
        if (model != nullptr) llama_model_free(model);
    }

    const llama_vocab * vocab() const { return llama_model_get_vocab(model); }
};

Session & session(jlong handle) {
    return *reinterpret_cast<Session *>(handle);
}

void refuse(JNIEnv * env, const std::string & why) {
    env->ThrowNew(env->FindClass("java/lang/IllegalArgumentException"), why.c_str());
}

std::string text(JNIEnv * env, jbyteArray bytes) {
    std::string out(env->GetArrayLength(bytes), '\0');
    env->GetByteArrayRegion(bytes, 0, out.size(), reinterpret_cast<jbyte *>(out.data()));
    return out;
}

}  // namespace

#define LLAMA(RESULT, NAME) extern "C" JNIEXPORT RESULT JNICALL Java_ai_adadim_sample_LlamaModel_##NAME

LLAMA(jlong, open)(JNIEnv * env, jobject, jbyteArray path, jint n_ctx, jint threads) {
    llama_backend_init();
    auto * made = new Session;
    llama_model_params model = llama_model_default_params();
    model.n_gpu_layers = 0;
    made->model = llama_model_load_from_file(text(env, path).c_str(), model);
    llama_context_params context = llama_context_default_params();
    context.n_ctx = n_ctx;
    context.n_threads = context.n_threads_batch = threads;
    if (made->model != nullptr) made->context = llama_init_from_model(made->model, context);
    if (made->context == nullptr) {
        delete made;
        refuse(env, "llama.cpp refuses " + text(env, path));
        return 0;
    }
    return reinterpret_cast<jlong>(made);
}

LLAMA(jintArray, tokenize)(JNIEnv * env, jobject, jlong handle, jbyteArray bytes) {
    const std::string held = text(env, bytes);
    std::vector<llama_token> tokens(held.size() + 2);  // a token has a byte at least; BOS and EOS may come with them
    const int count = llama_tokenize(session(handle).vocab(), held.data(), held.size(), tokens.data(), tokens.size(), true, true);
    jintArray out = env->NewIntArray(std::max(count, 0));
    if (out != nullptr && count > 0) env->SetIntArrayRegion(out, 0, count, tokens.data());
    return out;
}

LLAMA(jbyteArray, piece)(JNIEnv * env, jobject, jlong handle, jint token) {
    std::string held(64, '\0');
    int size = llama_token_to_piece(session(handle).vocab(), token, held.data(), held.size(), 0, false);
    if (size < 0) {
        held.resize(-size);
        size = llama_token_to_piece(session(handle).vocab(), token, held.data(), held.size(), 0, false);
    }
    jbyteArray out = env->NewByteArray(size);
    if (out != nullptr) env->SetByteArrayRegion(out, 0, size, reinterpret_cast<const jbyte *>(held.data()));
    return out;
}

LLAMA(void, forget)(JNIEnv *, jobject, jlong handle) {
    llama_memory_clear(llama_get_memory(session(handle).context), true);
}

// Runs the tokens after those before, in batches as large as the context takes; the most likely next one.
LLAMA(jint, step)(JNIEnv * env, jobject, jlong handle, jintArray array) {
    std::vector<llama_token> tokens(env->GetArrayLength(array));
    env->GetIntArrayRegion(array, 0, tokens.size(), tokens.data());
    llama_context * context = session(handle).context;
    const size_t most = llama_n_batch(context);
    for (size_t start = 0; start < tokens.size(); start += most) {
        const int32_t size = std::min(most, tokens.size() - start);
        const int status = llama_decode(context, llama_batch_get_one(tokens.data() + start, size));
        if (status != 0) {
            refuse(env, "llama_decode returns " + std::to_string(status) + (status == 1 ? ": the context is full" : ""));
            return -1;
        }
    }
    const float * logits = llama_get_logits_ith(context, -1);
    return std::max_element(logits, logits + llama_vocab_n_tokens(session(handle).vocab())) - logits;
}

LLAMA(jboolean, isEnd)(JNIEnv *, jobject, jlong handle, jint token) {
    return llama_vocab_is_eog(session(handle).vocab(), token);
}

LLAMA(void, close)(JNIEnv *, jobject, jlong handle) {
    delete reinterpret_cast<Session *>(handle);
}
