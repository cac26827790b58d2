#pragma once
#include <atomic>
#include <cstdint>
#include <thread>

// Where threads wait for each other, a hundred times in a pass. OpenMP's own barrier sleeps as soon as the process has more of its workers
// than cores, idle ones of other threads included, and takes ten times as long then.
class Meeting {
public:
    void wait(int64_t threads) {
        const int64_t now = round.load(std::memory_order_acquire);
        if (come.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            come.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        // Who gives its core away early loses a whole slice of time to whatever else runs; who never does may keep the last one from coming.
        for (int tries = 0; round.load(std::memory_order_acquire) == now; tries++) tries < PATIENCE ? pause() : std::this_thread::yield();
    }

private:
    static constexpr int PATIENCE = 20000;  // some hundred microseconds
    std::atomic<int64_t> come{0}, round{0};
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
};
