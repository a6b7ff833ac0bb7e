// A run's steps called from Python without PyTorch's dispatcher: what stays the same was checked by
// fastdiff/ops/stepper.py, what a step brings along is checked here, and what does not fit goes to its
// fallback.
#pragma once

#include <pybind11/pybind11.h>

#include "../stepper.h"

namespace fastdiff {

namespace py = pybind11;

// Names of what is asked of tensors, made once.
struct Names {
    PyObject* dtype = PyUnicode_InternFromString("dtype");
    PyObject* shape = PyUnicode_InternFromString("shape");
    PyObject* stride = PyUnicode_InternFromString("stride");
    PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
    PyObject* is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
    PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
};

inline const Names& names() {
    static const Names all;
    return all;
}

struct Stepper {
    FastdiffStepFunction take;
    FastdiffRun run;
    py::object tensor_type, float32, float16, bfloat16;
    py::object shape, doubled_shape, strides;  // of x; of a doubled output
    py::object vector_shape, vector_strides;   // of bound and gain
    py::object state;                          // x
    py::object shown;                          // what the model is given: x or input
    void* shown_address;
    py::object written, bump;  // tensors whose version is raised by bump(written); bump may be None
    py::object fallback;       // called with the same arguments
    py::object kept;           // whatever holds the memory
};

inline bool is(PyObject* tensor, PyObject* name, PyObject* expected) {
    PyObject* found = PyObject_GetAttr(tensor, name);
    Py_XDECREF(found);
    return found == expected;
}

inline bool equals(PyObject* found, const py::object& expected) {  // takes found
    const bool same = found && PyObject_RichCompareBool(found, expected.ptr(), Py_EQ) == 1;
    Py_XDECREF(found);
    return same;
}

// The tensor's memory, or null.
inline void* memory(PyObject* tensor) {
    PyObject* found = PyObject_CallMethodNoArgs(tensor, names().data_ptr);
    void* address = found ? PyLong_AsVoidPtr(found) : nullptr;
    Py_XDECREF(found);
    return address;
}

// The memory of a plain CPU tensor that autograd does not record, laid out as asked; else null.
inline void* plain(const Stepper& s, PyObject* tensor, const py::object& strides) {
    const Names& n = names();
    if (reinterpret_cast<PyObject*>(Py_TYPE(tensor)) != s.tensor_type.ptr()) return nullptr;
    if (!is(tensor, n.is_cpu, Py_True) || !is(tensor, n.requires_grad, Py_False)) return nullptr;
    if (!equals(PyObject_CallMethodNoArgs(tensor, n.stride), strides)) return nullptr;
    PyObject* negated = PyObject_CallMethodNoArgs(tensor, n.is_neg);
    Py_XDECREF(negated);
    return negated == Py_False ? memory(tensor) : nullptr;
}

// The code of a floating-point type, or -1.
inline int64_t type_of(const Stepper& s, PyObject* tensor) {
    PyObject* found = PyObject_GetAttr(tensor, names().dtype);
    Py_XDECREF(found);
    return found == s.float32.ptr() ? 0 : found == s.float16.ptr() ? 1 : found == s.bfloat16.ptr() ? 2 : -1;
}

// Sets `address` to the memory of an optional [B] of float32; false if it does not fit.
inline bool vector_fits(const Stepper& s, PyObject* tensor, const float** address) {
    if (tensor == Py_None) return true;
    *address = static_cast<const float*>(plain(s, tensor, s.vector_strides));
    return *address && type_of(s, tensor) == 0 &&
           equals(PyObject_GetAttr(tensor, names().shape), s.vector_shape);
}

// The noise, like x but of any float type.
inline bool noise_fits(const Stepper& s, PyObject* tensor, FastdiffRow& row) {
    if (tensor == Py_None) return true;
    row.noise = plain(s, tensor, s.strides);
    row.noise_type = type_of(s, tensor);
    return row.noise && row.noise_type >= 0 && equals(PyObject_GetAttr(tensor, names().shape), s.shape);
}

// The same for the model's outputs, of any float type; without uncond, output may hold both.
inline bool outputs_fit(const Stepper& s, PyObject* output, PyObject* uncond, FastdiffRow& row) {
    if (output == Py_None) return uncond == Py_None;
    row.output = plain(s, output, s.strides);
    row.type = type_of(s, output);
    if (!row.output || row.type < 0) return false;
    if (uncond != Py_None) {
        row.uncond = plain(s, uncond, s.strides);
        if (!row.uncond || type_of(s, uncond) != row.type) return false;
        if (!equals(PyObject_GetAttr(uncond, names().shape), s.shape)) return false;
    }
    PyObject* shape = PyObject_GetAttr(output, names().shape);
    if (!shape) return false;
    const bool single = PyObject_RichCompareBool(shape, s.shape.ptr(), Py_EQ) == 1;
    if (single || uncond != Py_None) {
        Py_DECREF(shape);
        return single;
    }
    row.uncond = static_cast<const char*>(row.output) + s.run.numel * (row.type == 0 ? 4 : 2);
    return equals(shape, s.doubled_shape);
}

// The memory of a float32 image like x, or null.
inline const float* image(const Stepper& s, PyObject* tensor) {
    const auto* address = static_cast<const float*>(plain(s, tensor, s.strides));
    const bool fits =
        address && type_of(s, tensor) == 0 && equals(PyObject_GetAttr(tensor, names().shape), s.shape);
    return fits ? address : nullptr;
}

// A state of its own, given from the seventh argument on: `source` and anchor are read; x, input and history,
// which the caller made for it, are written.
inline bool moved(const Stepper& s, PyObject* const* args, Py_ssize_t count, FastdiffRow& row) {
    if (count != 11) return false;
    row.source = image(s, args[6]);
    if (args[10] != Py_None && !(row.anchor = image(s, args[10]))) return false;
    row.x = static_cast<float*>(memory(args[7]));
    if (args[8] != Py_None) row.input = memory(args[8]);
    if (args[9] != Py_None) row.history = static_cast<float*>(memory(args[9]));
    return row.source && row.x;
}

// The kernel, while other threads run Python; false where it took nothing.
inline bool ran(const Stepper& s, const FastdiffRow& row) {
    const char* refusal;
    Py_BEGIN_ALLOW_THREADS;
    refusal = s.take(&s.run, &row);
    Py_END_ALLOW_THREADS;
    return refusal == nullptr;
}

// step(row, output=None, uncond=None, noise=None, bound=None, gain=None[, source, x, input, history, anchor])
inline PyObject* step(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    const Stepper& s = *static_cast<Stepper*>(PyCapsule_GetPointer(self, nullptr));
    const auto given = [&](Py_ssize_t i) { return i < count ? args[i] : Py_None; };
    FastdiffRow row = {};
    bool taken = count >= 1 && count <= 11 && PyLong_CheckExact(args[0]);
    if (taken) {
        row.row = PyLong_AsLongLong(args[0]);
        taken = outputs_fit(s, given(1), given(2), row) && noise_fits(s, given(3), row) &&
                vector_fits(s, given(4), &row.bound) && vector_fits(s, given(5), &row.gain);
    }
    if (taken)
        taken = count > 6 ? moved(s, args, count, row)
                          : memory(s.state.ptr()) == s.run.x && memory(s.shown.ptr()) == s.shown_address;
    if (taken) taken = ran(s, row);
    PyErr_Clear();  // of what was asked of something that is no tensor: the fallback says it better
    if (!taken) return PyObject_Vectorcall(s.fallback.ptr(), args, count, nullptr);
    if (s.bump.is_none()) Py_RETURN_NONE;
    return PyObject_CallOneArg(s.bump.ptr(), s.written.ptr());
}

// A Python function whose self is `state`, which it owns.
template <class T>
inline py::object bound_to(PyMethodDef* definition, T* state) {
    PyObject* capsule = PyCapsule_New(
        state, nullptr, [](PyObject* c) { delete static_cast<T*>(PyCapsule_GetPointer(c, nullptr)); });
    if (!capsule) {
        delete state;
        throw py::error_already_set();
    }
    PyObject* made = PyCFunction_NewEx(definition, capsule, nullptr);
    Py_DECREF(capsule);
    if (!made) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

template <class T>
inline T* pointer(const py::dict& of, const char* name) {
    return reinterpret_cast<T*>(of[name].cast<intptr_t>());
}

// what: the fields of FastdiffRun (addresses as integers, 0 for none) and those of Stepper, by name.
inline py::object make_stepper(const py::dict& what) {
    const auto number = [&](const char* name) { return what[name].cast<int64_t>(); };
    auto* s = new Stepper{
        reinterpret_cast<FastdiffStepFunction>(what["take"].cast<intptr_t>()),
        {pointer<const double>(what, "table"), number("rows"), number("numel"), number("images"),
         pointer<float>(what, "x"), pointer<float>(what, "anchor"), pointer<float>(what, "history"),
         number("slots"), pointer<void>(what, "input"), number("input_type"), number("copies"),
         pointer<const float>(what, "mask"), pointer<const float>(what, "known"),
         pointer<const float>(what, "known_noise"), pointer<const int64_t>(what, "seeds")},
        what["tensor_type"],
        what["float32"],
        what["float16"],
        what["bfloat16"],
        what["shape"],
        what["doubled_shape"],
        what["strides"],
        what["vector_shape"],
        what["vector_strides"],
        what["state"],
        what["shown"],
        pointer<void>(what, "shown_address"),
        what["written"],
        what["bump"],
        what["fallback"],
        what["kept"]};
    static PyMethodDef definition = {
        "step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step)), METH_FASTCALL,
        "step(row, output=None, uncond=None, noise=None, bound=None, gain=None, /), or all eleven"};
    return bound_to(&definition, s);
}

}  // namespace fastdiff
