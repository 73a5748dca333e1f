// client.cu - a program of the CUDA runtime, with the protocol of programs.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include <cuda_runtime.h>

__global__ void twice(const float *in, float *out, int count)
{
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count)
        out[at] = 2 * in[at];
}

static float largest_error()
{
    const int count = 1 << 20;
    std::vector<float> in(count), out(count);
    for (int at = 0; at < count; at++)
        in[at] = static_cast<float>(at % 1000);
    float *from = nullptr, *to = nullptr, error = 0;
    cudaMalloc(&from, count * sizeof(float));
    cudaMalloc(&to, count * sizeof(float));
    cudaMemcpy(from, in.data(), count * sizeof(float), cudaMemcpyHostToDevice);
    twice<<<(count + 255) / 256, 256>>>(from, to, count);
    cudaMemcpy(out.data(), to, count * sizeof(float), cudaMemcpyDeviceToHost);
    for (int at = 0; at < count; at++)
        error = std::max(error, std::abs(out[at] - 2 * in[at]));
    cudaFree(from);
    cudaFree(to);
    return cudaGetLastError() == cudaSuccess ? error : 1e9f;
}

int main()
{
    const float error = largest_error();
    size_t free_bytes = 0, total = 0, taken = 0;
    cudaMemGetInfo(&free_bytes, &total);
    std::vector<void *> kept;
    cudaError_t refused = cudaSuccess;
    for (size_t step : {size_t(64) << 20, size_t(2) << 20}) {
        void *at = nullptr;
        while ((refused = cudaMalloc(&at, step)) == cudaSuccess) {
            kept.push_back(at);
            taken += step;
        }
    }
    std::printf("{\"total\": %zu, \"free\": %zu, \"taken\": %zu, \"refused\": [%d], \"matmul_error\": %g}\n", total,
                free_bytes, taken, static_cast<int>(refused), error);
    std::fflush(stdout);
    std::getchar();
    for (void *at : kept)
        cudaFree(at);
    cudaMemGetInfo(&free_bytes, &total);
    std::printf("{\"free_after\": %zu}\n", free_bytes);
    return 0;
}
