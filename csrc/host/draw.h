// Drawing from a torch.Generator past PyTorch's dispatcher: its state read, used and written back in one
// call. fastdiff/ops/_drawing.py.
#pragma once

#include <cstring>

#include "stepper.h"

namespace fastdiff {

constexpr Py_ssize_t kStateSize = 5056;  // of a CPU generator

struct Drawer {
    int (*draw)(void* out, int64_t numel, int dtype, const void* state, void* after);
    int (*same)(const void* state, const void* other);
};

// The memory of a generator's state, or null where it is of another kind.
inline void* state_of(const py::object& state) {
    return state && PyObject_Size(state.ptr()) == kStateSize ? memory(state.ptr()) : nullptr;
}

// draw(generator, address, numel, type) -> True, False where somebody else drew meanwhile, or None where the
// state is of an unknown kind; then the generator is as it was.
inline PyObject* draw(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    static PyObject* const get = PyUnicode_InternFromString("get_state");
    static PyObject* const set = PyUnicode_InternFromString("set_state");
    const Drawer& drawer = *static_cast<Drawer*>(PyCapsule_GetPointer(self, nullptr));
    if (count != 4) Py_RETURN_NONE;
    const auto read = [&] {
        return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(args[0], get));
    };
    const py::object state = read();
    void* const address = state_of(state);
    void* const out = PyLong_AsVoidPtr(args[1]);
    const int64_t numel = PyLong_AsLongLong(args[2]);
    const int type = static_cast<int>(PyLong_AsLong(args[3]));
    int failed = -1;
    char before[kStateSize];
    if (address && !PyErr_Occurred()) {
        std::memcpy(before, address, kStateSize);
        Py_BEGIN_ALLOW_THREADS;
        failed = drawer.draw(out, numel, type, before, address);
        Py_END_ALLOW_THREADS;
    }
    if (PyErr_Occurred()) return nullptr;
    if (failed) Py_RETURN_NONE;
    const py::object now = read();
    const void* there = state_of(now);
    if (!there) return nullptr;
    if (!drawer.same(before, there)) Py_RETURN_FALSE;
    const auto done = py::reinterpret_steal<py::object>(PyObject_CallMethodOneArg(args[0], set, state.ptr()));
    if (!done) return nullptr;
    Py_RETURN_TRUE;
}

// By the addresses of the CPU library's fastdiff_draw_1 and fastdiff_same_state.
inline py::object make_filler(intptr_t draws, intptr_t same) {
    auto* drawer = new Drawer{
        reinterpret_cast<decltype(Drawer::draw)>(draws), reinterpret_cast<decltype(Drawer::same)>(same)};
    static PyMethodDef definition = {
        "draw", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&draw)), METH_FASTCALL,
        "draw(generator, address, numel, type, /) -> bool | None"};
    return bound_to(&definition, drawer);
}

}  // namespace fastdiff
