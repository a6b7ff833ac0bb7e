// Whether a scheduler's step is the one that follows its last, asked of a dozen objects in a microsecond;
// then it is taken (taken.h). fastdiff/diffusers/short.py.
#pragma once

#include "taken.h"

namespace fastdiff {

// An integer of a loop's memory; -1 if there is none.
inline int64_t remembered(PyObject* seen, PyObject* name) {
    PyObject* found = PyDict_GetItemWithError(seen, name);
    return found && PyLong_CheckExact(found) ? PyLong_AsLongLong(found) : -1;
}

// Whether nobody wrote into these: a tuple of (tensor, its version).
inline bool untouched(PyObject* versions) {
    if (!versions || !PyTuple_CheckExact(versions)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(versions); ++i) {
        PyObject* pair = PyTuple_GET_ITEM(versions, i);
        const int64_t version = number(PyTuple_GET_ITEM(pair, 0), loop_names().tensor_version);
        if (version != PyLong_AsLongLong(PyTuple_GET_ITEM(pair, 1))) return false;
    }
    return true;
}

inline bool is_simple(PyObject* value) {
    return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
           PyUnicode_CheckExact(value);
}

// step()'s further arguments, if they are those of the steps before; else generator is null.
struct Arguments {
    PyObject* generator = nullptr;
    PyObject* return_dict = nullptr;
};

inline Arguments arguments_of(const Way& way, PyObject* given) {
    const LoopNames& n = loop_names();
    Arguments found{Py_None, way.return_dict.ptr()};
    PyObject *name, *value;
    Py_ssize_t at = 0, others = 0;
    while (PyDict_Next(given, &at, &name, &value)) {
        if (PyUnicode_Compare(name, n.return_dict) == 0) {
            found.return_dict = value;
        } else if (way.generator && PyUnicode_Compare(name, n.generator) == 0) {
            found.generator = value;
        } else {
            PyObject* usual = PyDict_GetItemWithError(way.options.ptr(), name);
            if (!usual || !is_simple(value) || PyObject_RichCompareBool(usual, value, Py_EQ) != 1) return {};
            ++others;
        }
    }
    return others == PyDict_GET_SIZE(way.options.ptr()) ? found : Arguments{};
}

// Whether the loop is where it was: nothing was set since, and diffusers' own step has not taken over.
inline bool undisturbed(PyObject* seen, PyObject* run) {
    const LoopNames& n = loop_names();
    PyObject* plain = PyDict_GetItemWithError(seen, n.plain);
    if (plain && plain != Py_None) return false;
    const py::object known = attribute(run, n.memory);
    if (!known || known.is_none() || PyDict_GetItemWithError(seen, n.memo) != known.ptr()) return false;
    return untouched(attribute(known.ptr(), n.versions).ptr());
}

// Whether `sample` is what the last step returned, or the loop is about to begin.
inline bool goes_on(const Way& way, PyObject* seen, PyObject* run, int64_t next, PyObject* sample) {
    const LoopNames& n = loop_names();
    const int64_t counted = way.counted ? remembered(seen, n.step_index) : next;
    if (attribute(run, n.fresh).ptr() == Py_True)
        return (counted == -1 || counted == next) && remembered(seen, n.begin_index) <= 0 &&
               image(*way.stepper, sample);
    return counted == next && attribute(run, n.returned).ptr() == sample &&
           number(sample, n.tensor_version) == number(run, n.version);
}

inline bool at_place(const Way& way, PyObject* run, PyObject* timestep) {
    const LoopNames& n = loop_names();
    const int64_t place = number(run, n.place);
    if (place < 0 || reinterpret_cast<PyObject*>(Py_TYPE(timestep)) != way.stepper->tensor_type.ptr())
        return false;
    return reinterpret_cast<int64_t>(memory(timestep)) ==
           number(run, n.first) + place * number(run, n.stride);
}

inline bool output_fits(const Way& way, PyObject* output) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(output)) != way.stepper->tensor_type.ptr()) return false;
    return is(output, names().dtype, way.output_dtype.ptr()) &&
           equals(PyObject_GetAttr(output, names().shape), way.stepper->shape);
}

// The arguments of the step that follows, if this is it and the short way leads there.
inline Arguments expected(Step& at, PyObject* timestep, PyObject* given) {
    const Way& way = at.way;
    if (!PyDict_CheckExact(at.seen) || !PyDict_CheckExact(given)) return {};
    const int64_t next = number(at.run, loop_names().next);
    at.row = next - way.begin;
    if (at.row < 0 || at.row >= static_cast<int64_t>(way.rows.size())) return {};
    const bool goes = static_cast<Row>(way.rows[at.row]) != Row::kLong &&
                      goes_on(way, at.seen, at.run, next, at.sample) && at_place(way, at.run, timestep) &&
                      output_fits(way, at.output) && undisturbed(at.seen, at.run);
    return goes ? arguments_of(way, given) : Arguments{};
}

// follow(scheduler, seen, run, output, timestep, sample, arguments, given) -> what step() returns, or None
// where this is not the step that follows, or not for this way: then nothing was done. seen: the loop's
// memory; given: what step() was given, of which output may be a part.
inline PyObject* follow(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    const Way& way = *static_cast<Way*>(PyCapsule_GetPointer(self, nullptr));
    if (count != 8) Py_RETURN_NONE;
    Step at = {way, args[0], args[1], args[2], args[3], args[5], args[7], -1};
    const Arguments found = expected(at, args[4], args[6]);
    PyErr_Clear();  // of what was asked of something that is not of the kind expected
    if (!found.generator) Py_RETURN_NONE;
    const auto usual = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(way.usual.ptr()));
    if (!usual) return nullptr;
    if (usual.ptr() != Py_True) Py_RETURN_NONE;
    py::object made = taken(at, found.generator, found.return_dict);
    if (made) return made.release().ptr();
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
}

// follow, by what `what` names like the fields of Way.
inline py::object make_follower(const py::dict& what) {
    const auto flag = [&](const char* name) { return what[name].cast<bool>(); };
    const py::object stepper = what["take"];
    const auto* state =
        static_cast<Stepper*>(PyCapsule_GetPointer(PyCFunction_GET_SELF(stepper.ptr()), nullptr));
    auto* way = new Way{
        stepper,
        state,
        what["output_dtype"],
        what["result_dtype"],
        what["options"],
        what["return_dict"],
        what["usual"],
        what["empty_like"],
        what["into"],
        what["noise"],
        what["rest"],
        what["finish"],
        what["lazy"],
        what["draw_dtype"],
        what["extra_dtype"],
        what["counts"],
        what["lines"],
        what["rows"].cast<std::string>(),
        what["seen"].cast<std::string>(),
        what["backs"].cast<std::string>(),
        what["begin"].cast<int64_t>(),
        what["draw_type"].cast<int64_t>(),
        what["reach"].cast<int64_t>(),
        flag("counted"),
        flag("generator"),
        flag("ring"),
        flag("wide"),
        flag("reuses")};
    static PyMethodDef definition = {
        "follow", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&follow)), METH_FASTCALL,
        "follow(scheduler, seen, run, output, timestep, sample, arguments, given, /)"};
    return bound_to(&definition, way);
}

}  // namespace fastdiff
