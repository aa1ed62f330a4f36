//! The translator against the conformance suite of `posada-vcpu`: one test for each behaviour.

use posada_vcpu::conformance::CASES;
use posada_vcpu::{Connections, Vcpu};
use posada_x86::{Interpreter, Model};
use posada_x86_translate::Translator;

fn translator(connections: Connections) -> Box<dyn Vcpu> {
    let model = Model::named("x86-64-v2").expect("a listed model exists");
    Box::new(Translator::new(connections, model, 1 << 20).expect("the host has what a translator needs"))
}

posada_vcpu::conformance_tests!(crate::translator);

/// Every other processor is the interpreter's.
fn mixed(connections: Connections) -> Box<dyn Vcpu> {
    if connections.index.is_multiple_of(2) {
        return translator(connections);
    }
    let model = Model::named("x86-64-v2").expect("a listed model exists");
    Box::new(Interpreter::new(connections, model).expect("there is always an interpreter"))
}

#[test]
fn processors_of_both_engines_agree() {
    let cases = CASES.iter().filter(|case| case.name.starts_with("processors::"));
    for case in cases {
        case.run(&mixed);
    }
}
