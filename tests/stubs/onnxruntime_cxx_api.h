// The part of onnxruntime's C++ interface that the documentation uses, declared only: its snippets
// are checked against it where the real header is not installed.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#define ORT_TSTR(text) text  // L##text on Windows

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

namespace Ort {

struct Env {
    Env(OrtLoggingLevel level, const char* id);
};

struct SessionOptions {
    SessionOptions();
    SessionOptions& SetIntraOpNumThreads(int threads);
    SessionOptions& AddConfigEntry(const char* key, const char* value);
};

struct RunOptions {
    explicit RunOptions(std::nullptr_t);
};

struct MemoryInfo {
    static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType memory);
};

struct AllocatorWithDefaultOptions {
    AllocatorWithDefaultOptions();
};

struct Value {
    template <typename T>
    static Value CreateTensor(const MemoryInfo& info, T* data, std::size_t count,
                              const std::int64_t* shape, std::size_t rank);
    template <typename T>
    const T* GetTensorData() const;
};

using AllocatedStringPtr = std::unique_ptr<char, void (*)(void*)>;

struct ModelMetadata {
    AllocatedStringPtr LookupCustomMetadataMapAllocated(const char* key,
                                                        AllocatorWithDefaultOptions& allocator) const;
};

struct Session {
    Session(const Env& env, const char* path, const SessionOptions& options);
    std::vector<Value> Run(const RunOptions& options, const char* const* input_names,
                           const Value* inputs, std::size_t input_count,
                           const char* const* output_names, std::size_t output_count);
    ModelMetadata GetModelMetadata() const;
};

}  // namespace Ort
