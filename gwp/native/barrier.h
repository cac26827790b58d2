#pragma once
#include <atomic>
#include <cstdint>
#include <thread>

// Where threads wait for each other, a hundred times in a pass. OpenMP's own barrier sleeps as soon
// as the process has more of its workers than cores, idle ones of other threads included, and takes
// ten times as long then.
class Barrier {
public:
    void wait(int64_t threads) {
        const int64_t now = generation.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            generation.store(now + 1, std::memory_order_release);
            return;
        }
        // Who gives its core away early loses a whole slice of time to whatever else runs; who
        // never does may keep the last one from coming.
        for (int tries = 0; generation.load(std::memory_order_acquire) == now; tries++)
            tries < SPINS ? pause() : std::this_thread::yield();
    }

private:
    static constexpr int SPINS = 20000;  // some hundred microseconds
    std::atomic<int64_t> arrived{0}, generation{0};

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
};
