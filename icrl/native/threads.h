// Work divided over threads that live for one call: nothing is left for a fork to break or for an OpenMP of someone
// else's to disturb. A start costs about 20 us, so callers ask for one thread when the work is small.
#pragma once

#include <pthread.h>

#include "vector.h"

namespace icrl {

constexpr int kMaxThreads = 256;

template <class Body>
struct Share {
  const Body* body;
  long* next;
  long items;
  int thread;

  // Items are taken as threads become free; each is done by one thread, so the result does not depend on which.
  static void* run(void* argument) {
    const Share& share = *static_cast<Share*>(argument);
    for (long item; (item = __atomic_fetch_add(share.next, 1, __ATOMIC_RELAXED)) < share.items;)
      (*share.body)(item, share.thread);
    return nullptr;
  }
};

ICRL_INLINE int threads_for(long items, int threads) {
  if (threads > items) threads = int(items);
  if (threads > kMaxThreads) threads = kMaxThreads;
  return threads < 1 ? 1 : threads;
}

// body(item, thread) for every item in 0 .. items-1, thread in 0 .. threads_for(items, threads)-1; the calling thread
// takes part. Where the system refuses a thread the others do its work.
template <class Body>
void parallel(long items, int threads, const Body& body) {
  threads = threads_for(items, threads);
  long next = 0;
  pthread_t started[kMaxThreads];
  Share<Body> shares[kMaxThreads];
  int n_started = 0;
  for (int t = 0; t < threads; ++t) shares[t] = Share<Body>{&body, &next, items, t};
  for (int t = 1; t < threads; ++t)
    if (pthread_create(&started[n_started], nullptr, Share<Body>::run, &shares[t]) == 0) ++n_started;
  Share<Body>::run(&shares[0]);
  for (int t = 0; t < n_started; ++t) pthread_join(started[t], nullptr);
}

}  // namespace icrl
