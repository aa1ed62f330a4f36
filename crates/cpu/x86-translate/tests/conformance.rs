//! The translator against the conformance suite of `posada-vcpu`: one test for each behaviour.

use posada_vcpu::{Connections, Vcpu};
use posada_x86::Model;
use posada_x86_translate::Translator;

fn translator(connections: Connections) -> Box<dyn Vcpu> {
    let model = Model::named("x86-64-v2").expect("a listed model exists");
    Box::new(Translator::new(connections, model, 1 << 20).expect("the host has what a translator needs"))
}

posada_vcpu::conformance_tests!(crate::translator);
