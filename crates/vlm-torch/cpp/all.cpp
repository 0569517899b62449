// The whole shim as one translation unit: parsing libtorch's headers takes most of the time of each.
// Names that a file keeps to itself are in anonymous namespaces and must differ between files.
#include "abort.cpp"
#include "autocast.cpp"
#include "checkpoint.cpp"
#include "cuda.cpp"
#include "guard.cpp"
#include "optim.cpp"
#include "process_group.cpp"
#include "profile.cpp"
#include "pth.cpp"
#include "reducer.cpp"
#include "runtime.cpp"
#include "store.cpp"
