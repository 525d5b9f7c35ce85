"""Temporary stand-in; the evaluation helper overwrites this file."""
import torch
def energy_distance(a, b):
    a=a.flatten(1).double();b=b.flatten(1).double();n=a.shape[1]**.5*b.std()
    c=lambda x,y:torch.cdist(x,y).mean()/n
    return float((2*c(a,b)-c(a,a)-c(b,b)).clamp_min(0).sqrt())
